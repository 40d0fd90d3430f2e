"""BaseClient over gRPC."""

from __future__ import annotations

import time
from os import PathLike

import grpc

from convlens.client.auth import TokenAuth
from convlens.client.base import BaseClient, ClientRequest, Form, is_loopback, params_json
from convlens.client.errors import error_from_body, error_object
from convlens.client.grpc_errors import error_from_rpc
from convlens.client.protocol.inference_pb2 import PredictionResponse, PredictionsRequest
from convlens.client.protocol.inference_pb2_grpc import InferenceAPIsServiceStub
from convlens.client.retry import RetryPolicy
from convlens.errors import RequestError

LARGEST = 134_217_728  # bytes of a message: max_response_size of the server, as config.properties sets it


class GrpcClient(BaseClient):
    """A server's gRPC inference address, such as 127.0.0.1:7070, asked over one connection.

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
        super().__init__(patience=RetryPolicy(timeout_s, retries), form=form)
        self._address = _checked(address)
        self._tokens = TokenAuth(token, key_file)
        self._model, self._version = model, version or ""
        self._channel = _channel(self._address, tls=tls)
        self._stub = InferenceAPIsServiceStub(self._channel)

    def __repr__(self) -> str:
        return f"GrpcClient({self._address!r}, {self._model!r})"

    def close(self) -> None:
        self._channel.close()

    def _send(self, message: ClientRequest, *, timeout_s: float) -> bytes:
        token = self._tokens.header()
        metadata = (("authorization", token),) if token else ()
        request, begun = self._request(message), time.monotonic()
        try:
            answer: PredictionResponse = self._stub.Predictions(request, metadata=metadata, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self._address, after_s=time.monotonic() - begun, timeout_s=timeout_s) from error
        _require_no_error(answer.prediction)
        return answer.prediction

    def _request(self, message: ClientRequest) -> PredictionsRequest:
        """gRPC has neither headers nor a call for explanations: the parameters say it all."""
        said = {"explain": message.explain, "accept": message.accept, "sent_at": time.time()}
        data = {"data": message.picture, "params": params_json({**message.params, **said})}
        return PredictionsRequest(model_name=self._model, model_version=self._version, input=data)


def _channel(address: str, *, tls: bool) -> grpc.Channel:
    options = {
        "grpc.max_receive_message_length": LARGEST,
        "grpc.max_send_message_length": LARGEST,
        # gRPC's own retries would be hidden from ours, and its wait for a server that comes back grows to two minutes.
        "grpc.enable_retries": 0,
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 2000,
        "grpc.enable_http_proxy": int(not is_loopback(address.rpartition(":")[0])),
    }
    if tls:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(), options=list(options.items()))
    return grpc.insecure_channel(address, options=list(options.items()))


def _checked(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or "/" in address:
        raise RequestError(f"{address!r} should read HOST:PORT, such as 127.0.0.1:7070", field="address")
    return address


def _require_no_error(body: bytes) -> None:
    """An error of the handler comes as an answer like any other: a JSON object with a code."""
    if body[:1] == b"{" and body[7:8] != b"\0":
        code = error_object(body).get("code")
        if isinstance(code, int):
            raise error_from_body(code, body)
