"""gRPC's errors as those of REST: the same fault gets the same code, whichever way the request went."""

from __future__ import annotations

import re

import grpc

from convlens.client.errors import FrontendError, timed_out, unreachable
from convlens.errors import ServerError

_Code = grpc.StatusCode
# The HTTP equivalents in google.rpc.Code; where TorchServe gives another code over REST, _http_status has it.
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
_NEARLY_OVER = 0.95


def error_from_rpc(error: grpc.RpcError, address: str, *, after_s: float, timeout_s: float) -> ServerError:
    """The error of a call that brought no answer, ``after_s`` seconds after it was made."""
    code, details = error.code(), str(error.details() or "")
    broken_off = code == _Code.CANCELLED and "RST_STREAM" in details
    if code == _Code.DEADLINE_EXCEEDED or (broken_off and after_s > _NEARLY_OVER * timeout_s):
        return timed_out(address, timeout_s)
    message, exception = _message_and_exception(details)
    if code == _Code.UNAVAILABLE and not exception:
        return unreachable(address, message)
    if broken_off:  # Netty says no more of a message beyond its limit
        return FrontendError(413, f"{address} broke off the request, which it does with one that is too large")
    return FrontendError(_http_status(code, message, exception), message or code.name, type=exception or code.name)


def _message_and_exception(details: str) -> tuple[str, str]:
    # Without an exception's name the details are not TorchServe's, but gRPC's own or a proxy's.
    message, _, last = details.rstrip().rpartition("\n")
    if match := _EXCEPTION.fullmatch(last.strip()):
        return message.strip(), match[1]
    return details.strip(), ""


def _http_status(code: grpc.StatusCode, message: str, exception: str) -> int:
    # TorchServe calls nearly everything INTERNAL, so its exception and its message decide.
    if code == _Code.PERMISSION_DENIED:
        return 400 if message.startswith("Token") else 403
    if exception in ("ModelNotFoundException", "ModelVersionNotFoundException"):
        return 404
    if exception and "has no worker to serve" in message:  # also the message of a full queue
        return 503
    return _HTTP.get(code, 500)
