"""What the ingress itself refuses, with the codes and words of TorchServe's frontend, so that clients read both alike.

Everything else a client did wrong is refused by the handler, with a field and the request's id.
"""

from __future__ import annotations

import grpc

from convlens.protocol.responses import dumps

_Code = grpc.StatusCode


class Refusal(Exception):  # noqa: N818, for it is an answer
    """``kind`` is the error's name for clients, ``code`` what gRPC calls it."""

    def __init__(self, status: int, kind: str, message: str, code: grpc.StatusCode = _Code.INVALID_ARGUMENT) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.code = status, kind, message, code

    @property
    def body(self) -> str:
        return dumps({"code": self.status, "type": self.kind, "message": self.message})

    @property
    def details(self) -> str:
        """For gRPC: the kind on a line of its own, where clients of TorchServe look for it."""
        return f"{self.message}\n{self.kind}"


def no_token() -> Refusal:
    message = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
    return Refusal(400, "InvalidKeyException", message, _Code.PERMISSION_DENIED)


def no_model(name: str) -> Refusal:
    return Refusal(404, "ModelNotFoundException", f"Model not found: {_quoted(name)}", _Code.NOT_FOUND)


def no_version(name: str, version: str) -> Refusal:
    message = f"Model version: {_quoted(version)} does not exist for model: {_quoted(name)}"
    return Refusal(404, "ModelVersionNotFoundException", message, _Code.NOT_FOUND)


def no_resource() -> Refusal:
    return Refusal(404, "ResourceNotFoundException", "Requested resource is not found, please refer to API document.")


def no_method() -> Refusal:
    return Refusal(405, "MethodNotAllowedException", "Requested method is not allowed, please refer to API document.")


def too_large(allowed: int) -> Refusal:
    message = f"a request of more than {allowed} bytes"
    return Refusal(413, "TooLongFrameException", message, _Code.RESOURCE_EXHAUSTED)


def busy(reason: str) -> Refusal:
    return Refusal(503, "ServiceUnavailableException", reason, _Code.UNAVAILABLE)


def failed() -> Refusal:
    return Refusal(500, "InternalServerException", "the replica failed; its log says why", _Code.INTERNAL)


def _quoted(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name[:100])
