"""gRPC's errors as those of REST: the same fault gets the same code, whichever way it came."""

from __future__ import annotations

import re

import grpc

from convlens.client.errors import FrontendError, timed_out, unreachable
from convlens.errors import ServerError

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


def error_from_rpc(error: grpc.RpcError, address: str, *, after_s: float, timeout_s: float) -> ServerError:
    """The error of a call that brought no answer, ``after_s`` seconds after it was made."""
    code, details = error.code(), str(error.details() or "")
    broken_off = code == _Code.CANCELLED and "RST_STREAM" in details
    if code == _Code.DEADLINE_EXCEEDED or (broken_off and after_s > _NEARLY * timeout_s):
        return timed_out(address, timeout_s)
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
