"""Clients as lean as they come, so that what is timed is the server: one kept connection each, REST or gRPC."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

from convlens.client.protocol.inference_pb2 import PredictionsRequest
from convlens.client.protocol.inference_pb2_grpc import InferenceAPIsServiceStub
from convlens.torchserve.server import Server
from convlens.torchserve.server_config import LOOPBACK

_LARGEST = 134_217_728
_BOUNDARY = "convlens-benchmark"


class Rest:
    """One connection to one model entry."""

    def __init__(self, server: Server, model: str) -> None:
        self._connection = http.client.HTTPConnection(LOOPBACK, server.ports.inference, timeout=120)
        self._headers = server.headers("inference")
        self._path = f"/predictions/{model}"

    def bare(self, picture: bytes) -> bytes:
        """A picture as the whole body, which asks for predictions."""
        return self._post(picture, "image/jpeg")

    def ask(self, picture: bytes, params: Mapping[str, Any]) -> bytes:
        """A form, as ``curl -F data=@… -F params=…`` sends it."""
        return self._post(_form(picture, json.dumps(dict(params))), f"multipart/form-data; boundary={_BOUNDARY}")

    def close(self) -> None:
        self._connection.close()

    def _post(self, body: bytes, content_type: str) -> bytes:
        self._connection.request("POST", self._path, body, {**self._headers, "Content-Type": content_type})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{self._path} answered {answer.status}: {text[:300]!r}")
        return text


class Grpc:
    """The same by gRPC."""

    def __init__(self, server: Server, model: str) -> None:
        sizes = [("grpc.max_receive_message_length", _LARGEST), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.insecure_channel(server.grpc_address, options=sizes)
        self._stub = InferenceAPIsServiceStub(self._channel)
        self._metadata = tuple((key.lower(), value) for key, value in server.headers("inference").items())
        self._model = model

    def bare(self, picture: bytes) -> bytes:
        return self._predict({"data": picture})

    def close(self) -> None:
        self._channel.close()

    def _predict(self, parts: Mapping[str, bytes]) -> bytes:
        request = PredictionsRequest(model_name=self._model, input=parts)
        body = self._stub.Predictions(request, metadata=self._metadata, timeout=120).prediction
        if json.loads(body).get("code"):
            raise RuntimeError(f"gRPC answered {body[:300]!r}")
        return bytes(body)


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Latencies:
    """What each answer took, and all of them together, in seconds."""

    seconds: list[float]
    elapsed: float


def latencies(
    server: Server, model: str, picture: bytes, params: Mapping[str, Any], *, clients: int, each: int
) -> Latencies:
    """That many clients asking one after another, each ``each`` times."""
    doors = [Rest(server, model) for _ in range(clients)]

    def visit(door: Rest) -> list[float]:
        return [timed(lambda: door.ask(picture, params)) for _ in range(each)]

    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        waited = [seconds for visited in pool.map(visit, doors) for seconds in visited]
        elapsed = time.perf_counter() - started
    for door in doors:
        door.close()
    return Latencies(waited, elapsed)


def throughput(
    server: Server, model: str, picture: bytes, params: Mapping[str, Any], *, clients: int, each: int
) -> float:
    """Answers a second to such clients."""
    return clients * each / latencies(server, model, picture, params, clients=clients, each=each).elapsed


def _form(picture: bytes, params: str) -> bytes:
    parts = [
        b'Content-Disposition: form-data; name="data"; filename="picture"\r\n\r\n' + picture,
        b'Content-Disposition: form-data; name="params"\r\n\r\n' + params.encode(),
    ]
    start = f"--{_BOUNDARY}\r\n".encode()
    return b"".join(start + part + b"\r\n" for part in parts) + f"--{_BOUNDARY}--\r\n".encode()
