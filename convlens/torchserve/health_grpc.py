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
from convlens.torchserve.health import PARAMS, grey_png, require_predictions


def probe_grpc(address: str, model: str, *, tokens: TokenAuth, timeout_s: float) -> None:
    """As ``health.probe``, at a gRPC inference address such as 127.0.0.1:7070, without TLS."""
    options = [("grpc.enable_http_proxy", int(not is_loopback(address.rpartition(":")[0])))]
    token = tokens.header()
    request = PredictionsRequest(model_name=model, input={"data": grey_png(), "params": json.dumps(PARAMS).encode()})
    with grpc.insecure_channel(address, options=options) as channel:
        started = time.monotonic()
        try:
            answer: PredictionResponse = InferenceAPIsServiceStub(channel).Predictions(
                request, metadata=(("authorization", token),) if token else (), timeout=timeout_s
            )
        except grpc.RpcError as error:
            raise error_from_rpc(error, address, after_s=time.monotonic() - started, timeout_s=timeout_s) from error
    # An error of the handler comes as an answer like any other, with its code inside.
    code = error_object(answer.prediction).get("code", 200)
    require_predictions(int(code), answer.prediction)
