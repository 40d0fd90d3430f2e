"""What can go wrong between a client and a server.

RemoteError           the service's own answer: ``status`` and ``message`` are the service's
└── FrontendError     TorchServe, or a proxy before it, answered in the service's place; it is a ServerError as well
ServerError           no answer, or one that cannot be read
└── UnreachableError  nobody took the request, or the connection broke
"""

from __future__ import annotations

import json
from typing import Any

from convlens.errors import ConvLensError, ServerError

_MAX_MESSAGE = 2000  # characters that an answer from elsewhere adds to a message
# TorchServe answers a missing, wrong or expired token with 400, as it does other things.
_NO_TOKEN = "Token Authorization failed"
_TOKEN_ADVICE = (
    "give the server's inference token by key_file or by $CONVLENS_TOKEN; it is a new one after each start, and expires"
)
# By TorchServe's own codes over REST; what means the same over gRPC is given the same code.
_ADVICE = {
    404: "name a model and a version that this server has",
    413: "send a smaller picture",
    500: "the reason is in the server's log",
    503: "its queue is full, or no worker is up; try again a little later, each time waiting longer, as retries=3 does",
}


class RemoteError(ConvLensError):
    """The server refused this request; ``status`` is its HTTP code, also over gRPC.

    ``type`` is the server's name for the error; ``request_id`` the request's own, empty where it has none.
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
        advice = _TOKEN_ADVICE if message.startswith(_NO_TOKEN) else _ADVICE.get(status, "")
        super().__init__(status, f"{message}; {advice}" if advice else message, field=field, type=type)


class UnreachableError(ServerError):
    """No connection, or one that broke before the answer was there."""


def timed_out(address: str, timeout_s: float) -> ServerError:
    return ServerError(f"no answer from {address} within {timeout_s:.3g} s; allow more by timeout_s")


def unreachable(address: str, reason: str) -> UnreachableError:
    return UnreachableError(f"no answer from {address}: {reason}; is the server running?")


def error_from_body(status: int, body: bytes) -> RemoteError:
    """The error in the body of an answer: a FrontendError that quotes it, unless it is the service's own."""
    answer = error_object(body)
    text = answer.get("message") or body[: 4 * _MAX_MESSAGE].decode("utf-8", errors="replace")
    message = " ".join(str(text).split())[:_MAX_MESSAGE] or f"status {status} without a message"
    field, kind = answer.get("field"), str(answer.get("type") or "")
    place = None if field is None else str(field)
    if "request_id" in answer:  # the service's errors have one, if only an empty one
        return RemoteError(status, message, field=place, request_id=str(answer["request_id"]), type=kind)
    return FrontendError(status, message, field=place, type=kind)


def error_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body, empty where it holds none."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
