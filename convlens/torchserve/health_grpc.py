"""The health check's tiny inference over gRPC: a file of its own, for only this one needs grpc."""

from __future__ import annotations

import json
import time

import grpc

from convlens.client.auth import TokenAuth, is_loopback
from convlens.client.errors import error_object
from convlens.client.grpc_errors import error_from_rpc
from convlens.client.protocol.inference_pb2 import PredictionResponse, PredictionsRequest
from convlens.client.protocol.inference_pb2_grpc import InferenceAPIsServiceStub
from convlens.torchserve.health import PARAMS, ask_in_channels, require_predictions


def probe_grpc(address: str, model: str, *, tokens: TokenAuth, timeout_s: float) -> None:
    """As ``health.probe``, at a gRPC inference address such as 127.0.0.1:7070, without TLS."""
    options = [("grpc.enable_http_proxy", int(not is_loopback(address.rpartition(":")[0])))]
    token = tokens.header()
    with grpc.insecure_channel(address, options=options) as channel:
        started = time.monotonic()

        def ask(data: bytes) -> tuple[int, bytes]:
            request = PredictionsRequest(model_name=model, input={"data": data, "params": json.dumps(PARAMS).encode()})
            answer: PredictionResponse = InferenceAPIsServiceStub(channel).Predictions(
                request,
                metadata=(("authorization", token),) if token else (),
                timeout=max(0.001, timeout_s - (time.monotonic() - started)),
            )
            # An error of the handler comes as an answer like any other, with its code inside.
            return int(error_object(answer.prediction).get("code", 200)), answer.prediction

        try:
            status, body = ask_in_channels(ask)
        except grpc.RpcError as error:
            raise error_from_rpc(error, address, after_s=time.monotonic() - started, timeout_s=timeout_s) from error
    require_predictions(status, body)
