"""What can go wrong between a client and a server.

RemoteError           the service's own answer: ``status`` and ``message`` are its words
└── FrontendError     TorchServe, or a proxy before it, answered in the service's place; it is a ServerError as well
ServerError           no answer, or one that cannot be read
└── UnreachableError  nobody took the request, or the connection broke

gRPC's own errors as those of REST: the same fault gets the same code, whichever way it came.
"""

from __future__ import annotations

import json
import re
from typing import Any

import grpc

from convlens.errors import ConvLensError, ServerError

_LONGEST = 2000  # of what a stranger's answer adds to a message
_NO_TOKEN = "Token Authorization failed"
_TOKEN = (
    "give the server's inference token by key_file or by $CONVLENS_TOKEN; it is a new one after each start, and expires"
)

# By TorchServe's own codes over REST; what over gRPC means the same is given the same code.
_ADVICE = {
    404: "name a model and a version that this server has",
    413: "send a smaller picture",
    500: "the reason is in the server's log",
    503: "its queue is full, or no worker is up; try again a little later, each time waiting longer, as retries=3 does",
}


class RemoteError(ConvLensError):
    """The server refused this request; ``status`` is its HTTP code, also over gRPC.

    ``type`` is the name the server gives the error; ``request_id`` the request's own, empty where it has none.
    """

    def __init__(
        self, status: int, message: str, *, field: str | None = None, request_id: str = "", type: str = ""
    ) -> None:
        super().__init__(message, field=field)
        self.status = status
        self.request_id = request_id
        self.type = type


class FrontendError(RemoteError, ServerError):
    """TorchServe or a proxy refused, before the model saw the request: token, model, size, queue."""

    def __init__(self, status: int, message: str, *, field: str | None = None, type: str = "") -> None:
        advice = _TOKEN if message.startswith(_NO_TOKEN) else _ADVICE.get(status, "")
        super().__init__(status, f"{message}; {advice}" if advice else message, field=field, type=type)


class UnreachableError(ServerError):
    """No connection, or one that broke before the answer was there."""


def late(address: str, timeout_s: float) -> ServerError:
    return ServerError(f"no answer from {address} within {timeout_s:.3g} s; allow more by timeout_s")


def unreachable(address: str, reason: str) -> UnreachableError:
    return UnreachableError(f"no answer from {address}: {reason}; is the server running?")


def refusal(status: int, body: bytes) -> RemoteError:
    """The error that this body tells; whatever is not of our making is a FrontendError, in its own words."""
    said = error_object(body)
    text = said.get("message") or body[: 4 * _LONGEST].decode("utf-8", errors="replace")
    message = " ".join(str(text).split())[:_LONGEST] or f"status {status} and no word"
    field, kind = said.get("field"), str(said.get("type") or "")
    place = None if field is None else str(field)
    if "request_id" in said:
        return RemoteError(status, message, field=place, request_id=str(said["request_id"]), type=kind)
    return FrontendError(status, message, field=place, type=kind)


def error_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body, empty where it holds none."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


_Code = grpc.StatusCode

# google.rpc.code's equivalents; what TorchServe says over REST with another code is in _status.
_HTTP = {
    _Code.INVALID_ARGUMENT: 400,
    _Code.FAILED_PRECONDITION: 400,
    _Code.OUT_OF_RANGE: 400,
    _Code.UNAUTHENTICATED: 401,
    _Code.NOT_FOUND: 404,
    _Code.ALREADY_EXISTS: 409,
    _Code.ABORTED: 409,
    _Code.RESOURCE_EXHAUSTED: 429,
    _Code.UNIMPLEMENTED: 501,
    _Code.UNAVAILABLE: 503,
}

# What TorchServe puts on a line of its own behind its message: org.pytorch.serve.….XException, or XException.()
_EXCEPTION = re.compile(r"(?:[\w.]+\.)?(\w+Exception)(?:\.\(\))?")

# The server counts the same seconds by a clock of its own, and may break off a late call before the client notices.
_NEARLY = 0.95


def told(error: grpc.RpcError, address: str, *, after_s: float, timeout_s: float) -> ServerError:
    """The error of a call that brought no answer, ``after_s`` seconds after it was made."""
    code, details = error.code(), str(error.details() or "")
    broken_off = code == _Code.CANCELLED and "RST_STREAM" in details
    if code == _Code.DEADLINE_EXCEEDED or (broken_off and after_s > _NEARLY * timeout_s):
        return late(address, timeout_s)
    message, kind = _split(details)
    if code == _Code.UNAVAILABLE and not kind:
        return unreachable(address, message)
    if broken_off:  # Netty says no more of a message beyond its limit
        return FrontendError(413, f"{address} broke off the request, which it does with one that is too large")
    return FrontendError(_status(code, message, kind), message or code.name, type=kind or code.name)


def _split(details: str) -> tuple[str, str]:
    """TorchServe's message and the name of its exception, empty where it is not TorchServe that speaks."""
    message, _, last = details.rstrip().rpartition("\n")
    if found := _EXCEPTION.fullmatch(last.strip()):
        return message.strip(), found[1]
    return details.strip(), ""


def _status(code: grpc.StatusCode, message: str, kind: str) -> int:
    """TorchServe calls nearly everything INTERNAL."""
    if code == _Code.PERMISSION_DENIED:
        return 400 if message.startswith("Token") else 403
    if kind in ("ModelNotFoundException", "ModelVersionNotFoundException"):
        return 404
    if kind and "has no worker to serve" in message:  # also said of a queue that is full
        return 503
    return _HTTP.get(code, 500)
