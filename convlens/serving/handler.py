"""A server's handler of batches: bytes to requests, replies to JSON or files, errors to codes, row by row.

Of its server it needs only the context of a call: the headers of a row, and somewhere to put a row's status and type.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from convlens.engine.batch import RequestRecord
from convlens.engine.engine import Engine, EngineOptions
from convlens.engine.executor import isolate_errors
from convlens.engine.method_calls import method_calls
from convlens.errors import ConvLensError, ModelError, RequestError
from convlens.explain import GraphModel
from convlens.image import Limits
from convlens.protocol.encoding import ApiResponse, encode_response, reply_too_large
from convlens.protocol.kserve import is_kserve_body
from convlens.protocol.metadata import Aspect, describe_model, described_aspect
from convlens.protocol.negotiation import JSON, PNG
from convlens.protocol.params import Params
from convlens.protocol.requests import ApiRequest, Request, parse_request
from convlens.protocol.responses import dumps, error_json
from convlens.serving.batch_reader import OnBlock, Sent, read_batch
from convlens.serving.telemetry import Telemetry, unreadable_request, with_outcome
from convlens.types import Reply

# Bytes of all replies to one batch. TorchServe takes them over in time quadratic in their size (8 MB 0.1 s, 80 MB 20 s,
# 120 MB over 40 s on two cores), and more than max_response_size kills the worker.
_MAX_BATCH_BYTES = 64_000_000
_RESPONSE_TIMEOUT_S = 120.0  # TorchServe resets it to this where an archive has a configuration without it
_BUDGET = 0.8  # of that timeout, for the work on a batch: the rest is for reading requests and sending replies
_PNG_BYTES = 1.5  # per pixel of an overlay, about: photographs of 0.2 to 12 million pixels gave 0.9 to 1.4


class BatchHandler:
    """One worker's engine and limits; handlers are subclasses that set them in ``initialize``."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.telemetry: Telemetry | None = None
        self.limits = Limits()
        self.max_reply_bytes = _MAX_BATCH_BYTES
        self.initialized = False

    def start(self, engine: Engine, config: Mapping[str, Any], context: Any) -> None:
        """Take up work, within the limits of the archive."""
        self.limits = Limits(**(config.get("limits") or {}))
        batch_size = max(1, int(context.system_properties.get("batch_size") or 1))
        self.max_reply_bytes = _MAX_BATCH_BYTES // batch_size
        if context.metrics is not None:
            self.telemetry = Telemetry(context.metrics.cache, str(context.model_name))
        engine.warm_up(batch_size)
        engine.calibrate()
        # What is loaded by now stays: a full collection that looks through it took .2 s, in the middle of a request.
        gc.collect()
        gc.freeze()
        self.engine = engine
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str | bytes]:
        """The reply to each item of a batch as text or bytes; its status and content type are set in ``context``."""
        if self.engine is None:
            raise ModelError("the handler was called before it was initialised")
        started = time.perf_counter()
        headers = [self._headers(context, n) for n in range(len(data))]
        # Errors are values from here on: what a handler raises is TorchServe's answer to the whole batch.
        calls = read_batch(self._read, list(zip(data, headers, strict=True)))
        requests = [request for call in calls if isinstance(call, ApiRequest) for request in call.requests]
        engine_records: list[RequestRecord] = []
        answers = iter(self.engine.run(requests, started=started, on_row=engine_records.append))
        answered, records, bodies = iter(engine_records), list[RequestRecord](), list[str | bytes]()
        for n, call in enumerate(calls):
            kserve = is_kserve_body(data[n].get("body"))
            if isinstance(call, ApiResponse):
                bodies.append(_body(call, context, n))
                continue
            if isinstance(call, ConvLensError):
                records.append(unreadable_request(call, time.perf_counter() - started))
                bodies.append(_body(call, context, n, kserve=kserve))
                continue
            outcome = self._outcome(call, [next(answers) for _ in call.requests])
            records += [with_outcome(next(answered), outcome) for _ in call.requests]
            request_id = call.requests[0].params.request_id
            bodies.append(_body(outcome, context, n, request_id=request_id, kserve=kserve))
        if self.telemetry:
            self.telemetry.record(records, reply_bytes=sum(map(len, bodies)))
        return bodies

    def _headers(self, context: Any, n: int) -> Mapping[str, Any]:
        headers: Mapping[str, Any] = context.get_all_request_header(n) or {}
        if not _is_rest(headers):
            # An answer is the last of its stream: StreamPredictions waits for this, Predictions ignores it, and over
            # REST it would be the end of a stream that never began.
            context.set_response_header(n, "ts_stream_next", "false")
        return headers

    def _read(self, sent: Sent, on_block: OnBlock) -> ApiRequest | ApiResponse | ConvLensError:
        """The call that arrived, or its answer where it asks for no more than a description or cannot be read."""
        item, headers = sent
        with isolate_errors() as isolation:
            if (aspect := described_aspect(item.get("body"))) is not None:
                return self._description(aspect)
            call = parse_request(
                item,
                headers,
                # Per item: one batch mixes both REST routes and gRPC.
                explain=str(headers.get("explain", "")).lower() == "true",
                path_method=str(headers.get("url_path", "")).strip("/"),
                limits=self.limits,
                channels=self._channels,
                on_block=on_block,
            )
            for request in call.requests:
                require_sendable(
                    request, self._default_methods, max_bytes=self.max_reply_bytes, channels=self._channels
                )
        return isolation.error or call

    def _description(self, aspect: Aspect) -> ApiResponse:
        if self.engine is None:
            raise ModelError("the handler was called before it was initialised")
        options = self.engine.options
        platform = "onnxruntime_onnx" if isinstance(self.engine.model, GraphModel) else "pytorch"
        described = describe_model(aspect, name=options.name, version=options.version, platform=platform)
        return ApiResponse(dumps(described.json_object()), JSON)

    @property
    def _channels(self) -> int:
        return self.engine.model.spec.channels if self.engine else 3

    @property
    def _default_methods(self) -> tuple[str, ...]:
        return self.engine.options.default_methods if self.engine else ()

    def _outcome(self, call: ApiRequest, answers: list[Reply | ConvLensError]) -> ApiResponse | ConvLensError:
        """The reply to one call as it goes out, or the error that takes its place."""
        replies: list[Reply] = []
        for position, answer in enumerate(answers):
            if isinstance(answer, ConvLensError):
                return call.envelope.locate(answer, position)
            replies.append(answer)
        with isolate_errors() as isolation:
            response = encode_response(call, replies)
        if isolation.error is None and len(response.body) > self.max_reply_bytes:
            return reply_too_large(len(response.body), self.max_reply_bytes)
        return isolation.error or response


def _is_rest(headers: Mapping[str, Any]) -> bool:
    # TorchServe sets this header on each of its REST routes; over gRPC only the input's keys come, and not as text.
    return isinstance(headers.get("explain"), str)


def _body(
    outcome: ApiResponse | ConvLensError, context: Any, n: int, *, request_id: str = "", kserve: bool = False
) -> str | bytes:
    if isinstance(outcome, ConvLensError):
        # The phrase is a constant of ours: a line break in it would kill the worker.
        context.set_response_content_type(n, "application/json")
        context.set_response_status(outcome.status, type(outcome).__name__, n)
        return dumps(error_json(outcome, request_id=request_id, kserve=kserve))
    for name, value in outcome.headers.items():
        context.set_response_header(n, name, value)
    context.set_response_content_type(n, outcome.media)  # by itself TorchServe sends none, not even for JSON
    return outcome.body


# --- what cannot be sent ----------------------------------------------------------------------------------------------


def require_sendable(request: Request, default_methods: Iterable[str], *, max_bytes: int, channels: int = 3) -> None:
    """Refuse, before any work, a reply that could not be sent. Raises RequestError.

    That is a PNG of several images or of none, or maps in the size of an image that would pass ``max_bytes``;
    gradients have ``channels``, the model's.
    """
    methods = [call.method for call in method_calls(request.params, default_methods)]
    if request.params.accept == PNG:
        _require_one_image(request.params, [method.name for method in methods if method.drawing != "thumbnails"])
    if request.params.size == "original":
        of_each = [
            channels if method.drawing in ("magnitude", "gradient") else 1
            for method in methods
            if method.needs != "embedding"
        ]
        size = _original_bytes(request, of_each)
        if size > max_bytes:
            raise reply_too_large(size, max_bytes, why="size 'original'")


def _require_one_image(params: Params, methods: Sequence[str]) -> None:
    if params.evaluation:
        raise RequestError(
            f"{PNG} holds one image and no curves; ask for {JSON}, where they are, or leave evaluate out",
            field="evaluate",
        )
    if len(params.output) != 1 or params.output[0] == "array":
        raise RequestError(f"{PNG} holds one image; ask for output ['overlay'] or ['heatmap']", field="output")
    if len(methods) != 1:
        raise RequestError(
            f"{PNG} holds one image, and this asks for {', '.join(methods) or 'none'}; name one method, such as by "
            "/explanations/NAME/1.0/saliency",
            field="methods",
        )


def _original_bytes(request: Request, channels: Sequence[int]) -> float:
    """About the size of a reply with maps of so many channels each, in the size of the image itself."""
    params, pixels = request.params, request.image.width * request.image.height
    base64 = 4 / 3 if params.accept == JSON else 1.0
    values = len(channels) if params.reduce != "none" else sum(channels)
    arrays = values * np.dtype(params.dtype).itemsize if "array" in params.output else 0.0
    overlays = len(channels) * _PNG_BYTES if "overlay" in params.output else 0.0
    return pixels * base64 * (arrays + overlays)


# --- the archive's configuration --------------------------------------------------------------------------------------


def handler_config(context: Any) -> dict[str, Any]:
    """The archive's configuration for the handler."""
    return dict((context.model_yaml_config or {}).get("convlens") or {})


def engine_options(config: Mapping[str, Any], context: Any) -> EngineOptions:
    """The engine's options by the archive: name, version, default methods, budget, precision, the entry for sweeps."""
    timeout_s = float((context.model_yaml_config or {}).get("responseTimeout") or _RESPONSE_TIMEOUT_S)
    sweeps_at = str(config.get("sweeps_at") or "")
    return EngineOptions(
        name=str(context.model_name),
        version=str(context.manifest["model"].get("modelVersion", "1.0")),
        default_methods=tuple(config.get("methods") or EngineOptions.default_methods),
        max_cost=float(config.get("max_cost") or EngineOptions.max_cost),
        max_seconds=timeout_s * float(config.get("budget") or _BUDGET),
        sweeps_at="" if sweeps_at == context.model_name else sweeps_at,
        precision=config.get("precision") or "float32",
    )


def assigned_gpu(context: Any) -> int | None:
    """The GPU that the server gave this worker, None for the CPU; ModelError where the archive asks for one in vain."""
    gpu_id = context.system_properties.get("gpu_id")
    # TorchServe counts GPUs by nvidia-smi; without it the model would silently run on the CPU.
    if gpu_id is None and (context.model_yaml_config or {}).get("deviceType") == "gpu":
        raise ModelError("deviceType is gpu, but TorchServe gave this worker none; is nvidia-smi on its PATH?")
    return None if gpu_id is None else int(gpu_id)
