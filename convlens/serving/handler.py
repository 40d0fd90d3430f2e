"""What every handler does with a batch, row by row: bytes to requests, replies to JSON or files, errors to codes.

It needs of its server only the context of a call: headers of a row, and somewhere to put a row's status and type.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from convlens.engine.batch import RequestRecord
from convlens.engine.engine import Engine, EngineOptions
from convlens.engine.executor import isolate_errors
from convlens.engine.method_calls import method_calls
from convlens.errors import ConvLensError, ModelError, RequestError
from convlens.image import Limits
from convlens.protocol.encoding import ApiResponse, encode_response, reply_too_large
from convlens.protocol.negotiation import JSON, PNG
from convlens.protocol.params import Params
from convlens.protocol.requests import ApiRequest, Request, parse_request
from convlens.protocol.responses import dumps, error_json
from convlens.serving.telemetry import Telemetry, unreadable_request, with_outcome
from convlens.types import Reply

_PNG_BYTES = 1.5  # a pixel of an overlay, about: photographs of 0.2 to 12 million pixels gave 0.9 to 1.4


def require_sendable(request: Request, default_methods: Iterable[str], *, most: int) -> None:
    """Refuse before any work what could not be sent: a picture file of several pictures or of none, or maps in the size
    of a picture that would pass ``most`` bytes. Raises RequestError.
    """
    asked = [call.method for call in method_calls(request.params, default_methods)]
    if request.params.accept == PNG:
        _require_one_picture(request.params, [method.name for method in asked if method.drawing != "thumbnails"])
    if request.params.size == "original":
        maps = [
            3 if method.drawing in ("magnitude", "gradient") else 1 for method in asked if method.needs != "embedding"
        ]
        size = _original_bytes(request, maps)
        if size > most:
            raise reply_too_large(size, most, why="size 'original'")


def _require_one_picture(params: Params, asked: Sequence[str]) -> None:
    if len(params.output) != 1 or params.output[0] == "array":
        raise RequestError(f"{PNG} holds one picture; ask for output ['overlay'] or ['heatmap']", field="output")
    if len(asked) != 1:
        raise RequestError(
            f"{PNG} holds one picture, and this asks for {', '.join(asked) or 'none'}; name one method, such as by "
            "/explanations/NAME/1.0/saliency",
            field="methods",
        )


def _original_bytes(request: Request, channels: Sequence[int]) -> float:
    params, pixels = request.params, request.picture.width * request.picture.height
    base64 = 4 / 3 if params.accept == JSON else 1.0
    item = np.dtype(params.dtype).itemsize
    values = len(channels) if params.reduce != "none" else sum(channels)
    arrays = values * item if "array" in params.output else 0.0
    overlays = len(channels) * _PNG_BYTES if "overlay" in params.output else 0.0
    return pixels * base64 * (arrays + overlays)


# Bytes of all replies to one batch. TorchServe takes them over in time quadratic in their size (8 MB 0.1 s, 80 MB 20 s,
# 120 MB over 40 s on two cores), and more than max_response_size kills the worker.
_LARGEST_BATCH = 64_000_000
_RESPONSE_TIMEOUT_S = 120.0  # TorchServe's own, where the archive has a configuration but does not say
_BUDGET = 0.8  # of it, for the work on a batch: what is left is for reading requests and sending replies


class BatchHandler:
    """One worker's engine and limits; handlers are subclasses that set them in ``initialize``."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.watch: Telemetry | None = None
        self.limits = Limits()
        self.largest_reply = _LARGEST_BATCH
        self.initialized = False

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str | bytes]:
        """Answer a batch: for each item the text or bytes of its reply, each with its own status and type."""
        if self.engine is None:
            raise ModelError("the handler was called before it was initialised")
        started, reports, seen = time.perf_counter(), list[RequestRecord](), list[RequestRecord]()
        calls = [self._read(item, context, n) for n, item in enumerate(data)]
        requests = [request for call in calls if isinstance(call, ApiRequest) for request in call.requests]
        answers = iter(self.engine.run(requests, on_row=reports.append))
        rows, bodies = iter(reports), list[str | bytes]()
        for n, call in enumerate(calls):
            if isinstance(call, ConvLensError):
                seen.append(unreadable_request(call, time.perf_counter() - started))
                bodies.append(_sent(call, "", context, n))
                continue
            outcome = self._outcome(call, [next(answers) for _ in call.requests])
            seen += [with_outcome(next(rows), outcome) for _ in call.requests]
            bodies.append(_sent(outcome, call.requests[0].params.request_id, context, n))
        if self.watch:
            self.watch.batch(seen, bodies)
        return bodies

    def start(self, engine: Engine, config: Mapping[str, Any], context: Any) -> None:
        """Ready from now on, with the archive's limits."""
        self.limits = Limits(**(config.get("limits") or {}))
        self.largest_reply = _LARGEST_BATCH // max(1, int(context.system_properties.get("batch_size") or 1))
        if context.metrics is not None:
            self.watch = Telemetry(context.metrics.cache, str(context.model_name))
        engine.calibrate()
        self.engine = engine
        self.initialized = True

    @property
    def default_methods(self) -> tuple[str, ...]:
        return self.engine.options.default_methods if self.engine else ()

    def _read(self, item: dict[str, Any], context: Any, n: int) -> ApiRequest | ConvLensError:
        headers = context.get_all_request_header(n) or {}
        if not _by_rest(headers):
            # An answer is the last of its stream: StreamPredictions waits for this, Predictions ignores it, and over
            # REST it would be the end of a stream that never began.
            context.set_response_header(n, "ts_stream_next", "false")
        with isolate_errors() as isolation:
            call = self._call(
                item,
                headers,
                explain=str(headers.get("explain", "")).lower() == "true",
                path_method=str(headers.get("url_path", "")).strip("/"),
            )
        return isolation.error or call

    def _call(self, item: dict[str, Any], headers: Mapping[str, str], *, explain: bool, path_method: str) -> ApiRequest:
        call = parse_request(item, headers, explain=explain, path_method=path_method, limits=self.limits)
        for request in call.requests:
            require_sendable(request, self.default_methods, most=self.largest_reply)
        return call

    def _outcome(self, call: ApiRequest, answers: list[Reply | ConvLensError]) -> ApiResponse | ConvLensError:
        """The reply to one message as it goes out, or the error that takes its place."""
        replies: list[Reply] = []
        for position, answer in enumerate(answers):
            if isinstance(answer, ConvLensError):
                return call.envelope.locate(answer, position)
            replies.append(answer)
        with isolate_errors() as isolation:
            out = encode_response(call, replies)
        if isolation.error is None and len(out.body) > self.largest_reply:
            return reply_too_large(len(out.body), self.largest_reply)
        return isolation.error or out


def handler_config(context: Any) -> dict[str, Any]:
    """The archive's configuration for the handler."""
    return dict((context.model_yaml_config or {}).get("convlens") or {})


def engine_options(config: Mapping[str, Any], context: Any) -> EngineOptions:
    """What the archive says of name, version, default methods, budget, precision and the entry for sweeps."""
    timeout_s = float((context.model_yaml_config or {}).get("responseTimeout") or _RESPONSE_TIMEOUT_S)
    sweeps_at = str(config.get("sweeps_at") or "")
    return EngineOptions(
        name=str(context.model_name),
        version=str(context.manifest["model"].get("modelVersion", "1.0")),
        default_methods=tuple(config.get("methods") or EngineOptions.default_methods),
        max_cost=float(config.get("max_cost") or EngineOptions.max_cost),
        max_seconds=timeout_s * float(config.get("budget") or _BUDGET),
        sweeps_at="" if sweeps_at == context.model_name else sweeps_at,
        precision=config.get("precision") or EngineOptions.precision,
    )


def assigned_gpu(context: Any) -> int | None:
    """The GPU that TorchServe gave this worker, None for the CPU; ModelError where one was asked for and none given."""
    gpu_id = context.system_properties.get("gpu_id")
    if gpu_id is None and (context.model_yaml_config or {}).get("deviceType") == "gpu":
        raise ModelError("deviceType is gpu, but TorchServe gave this worker none; is nvidia-smi on its PATH?")
    return None if gpu_id is None else int(gpu_id)


def _by_rest(headers: Mapping[str, Any]) -> bool:
    """TorchServe sets this header on each of its REST routes; over gRPC only the input's keys come, and not as text."""
    return isinstance(headers.get("explain"), str)


def _sent(outcome: ApiResponse | ConvLensError, request_id: str, context: Any, n: int) -> str | bytes:
    if isinstance(outcome, ConvLensError):
        # The phrase is a constant of ours: a line break in it would kill the worker.
        context.set_response_content_type(n, "application/json")
        context.set_response_status(outcome.status, type(outcome).__name__, n)
        return dumps(error_json(outcome, request_id=request_id))
    context.set_response_content_type(n, outcome.media)
    return outcome.body
