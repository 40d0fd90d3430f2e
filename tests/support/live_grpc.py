"""A live server asked over gRPC by the protocol alone, without our client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from convlens.client.protocol.inference_pb2 import PredictionsRequest
from convlens.client.protocol.inference_pb2_grpc import InferenceAPIsServiceStub
from convlens.torchserve.server import Server

_BYTES = 134_217_728
_OPTIONS = [
    ("grpc.max_receive_message_length", _BYTES),
    ("grpc.max_send_message_length", _BYTES),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True)
class Calls:
    server: Server
    stub: Any

    def unary(self, model: str, parts: Mapping[str, bytes], *, timeout_s: float = 60) -> bytes:
        asked = PredictionsRequest(model_name=model, input=dict(parts))
        return bytes(self.stub.Predictions(asked, metadata=self._token(), timeout=timeout_s).prediction)

    def stream(self, model: str, parts: Mapping[str, bytes], *, timeout_s: float = 60) -> list[bytes]:
        """Every message until the server ends the stream."""
        asked = PredictionsRequest(model_name=model, input=dict(parts))
        answers = self.stub.StreamPredictions(asked, metadata=self._token(), timeout=timeout_s)
        return [bytes(answer.prediction) for answer in answers]

    def _token(self) -> tuple[tuple[str, str], ...]:
        return tuple((name.lower(), value) for name, value in self.server.headers("inference").items())


@contextmanager
def calls(server: Server) -> Iterator[Calls]:
    with grpc.insecure_channel(server.grpc_address, options=_OPTIONS) as channel:
        yield Calls(server, InferenceAPIsServiceStub(channel))
