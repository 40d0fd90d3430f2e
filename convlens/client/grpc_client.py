"""The client over gRPC."""

from __future__ import annotations

import time
from os import PathLike

import grpc

from convlens.client.auth import TokenAuth, host_of, is_loopback
from convlens.client.base import BaseClient, ClientRequest, Form, params_json
from convlens.client.errors import error_from_body, error_object
from convlens.client.grpc_errors import error_from_rpc
from convlens.client.protocol.inference_pb2 import PredictionResponse, PredictionsRequest
from convlens.client.protocol.inference_pb2_grpc import InferenceAPIsServiceStub
from convlens.client.retry import RetryPolicy

# As max_response_size in the server's config.properties; gRPC's own limit is 4 MB, less than a few maps.
_MAX_MESSAGE_BYTES = 134_217_728


class GrpcClient(BaseClient):
    """A client of a server's gRPC inference address, such as 127.0.0.1:7070, over one connection.

    Everything else as for Client. ``tls``: by the certificate authorities that gRPC knows, or those that
    $GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names; TorchServe itself speaks none unless told to, a proxy before it does.
    """

    def __init__(
        self,
        address: str,
        *,
        model: str = "convlens",
        token: str | None = None,
        key_file: str | PathLike[str] | None = None,
        timeout_s: float = 120.0,
        version: str | None = None,
        retries: int = 0,
        form: Form = "safetensors",
        tls: bool = False,
    ) -> None:
        super().__init__(retry=RetryPolicy(timeout_s, retries), form=form)
        self._address = address
        self._auth = TokenAuth(token, key_file)
        self._model, self._version = model, version or ""
        self._channel = _channel(address, tls=tls)
        self._stub = InferenceAPIsServiceStub(self._channel)

    def __repr__(self) -> str:
        return f"GrpcClient({self._address!r}, {self._model!r})"

    def close(self) -> None:
        self._channel.close()

    def _send(self, request: ClientRequest, *, timeout_s: float) -> bytes:
        token = self._auth.header()
        metadata = (("authorization", token),) if token else ()
        message, sent_at = self._message(request), time.monotonic()
        try:
            response: PredictionResponse = self._stub.Predictions(message, metadata=metadata, timeout=timeout_s)
        except grpc.RpcError as error:
            after_s = time.monotonic() - sent_at
            raise error_from_rpc(error, self._address, after_s=after_s, timeout_s=timeout_s) from error
        _require_no_error(response.prediction)
        return response.prediction

    def _message(self, request: ClientRequest) -> PredictionsRequest:
        # gRPC has neither headers nor a call for explanations, so the parameters carry what REST has there.
        route = {"explain": request.explain, "accept": request.accept, "sent_at": time.time()}
        data = {"data": request.image, "params": params_json({**request.params, **route})}
        return PredictionsRequest(model_name=self._model, model_version=self._version, input=data)


def _channel(address: str, *, tls: bool) -> grpc.Channel:
    options = {
        "grpc.max_receive_message_length": _MAX_MESSAGE_BYTES,
        "grpc.max_send_message_length": _MAX_MESSAGE_BYTES,
        # gRPC's own retries would be hidden from ours, and its wait for a server that comes back grows to two minutes.
        "grpc.enable_retries": 0,
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 2000,
        "grpc.enable_http_proxy": int(not is_loopback(host_of(address))),
    }
    if tls:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(), options=list(options.items()))
    return grpc.insecure_channel(address, options=list(options.items()))


def _require_no_error(body: bytes) -> None:
    # Only a handler that raises gives a gRPC error, and that to its whole batch. Ours answers with its error, a JSON
    # object with a code.
    if body[:1] == b"{" and body[7:8] != b"\0":  # the eighth byte of a safetensors file is zero
        code = error_object(body).get("code")
        if isinstance(code, int):
            raise error_from_body(code, body)
