"""What every handler does with a batch, row by row: bytes to requests, replies to JSON, errors to status codes.

It needs of its server only the context of a call: headers of a row, and somewhere to put a row's status and type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convlens.errors import ConvLensError, ModelError, RequestError
from convlens.image import Limits
from convlens.service.engine import Engine, EngineOptions
from convlens.service.intake import read_request
from convlens.service.reply import dumps, error_json, to_json
from convlens.service.request import Request
from convlens.types import Reply

# Bytes of all replies to one batch. TorchServe takes them over in time quadratic in their size (8 MB 0.1 s, 80 MB 20 s,
# 120 MB over 40 s on two cores), and more than max_response_size kills the worker.
_LARGEST_BATCH = 64_000_000


class Worker:
    """One worker's engine and limits; handlers are subclasses that set them in ``initialize``."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.limits = Limits()
        self.largest_reply = _LARGEST_BATCH
        self.initialized = False

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str]:
        """Answer a batch: one strict JSON text per item, each with its own status."""
        if self.engine is None:
            raise ModelError("the handler was called before it was initialised")
        items = [self._read(item, context, n) for n, item in enumerate(data)]
        answers = iter(self.engine.run([item for item in items if isinstance(item, Request)]))
        return [
            self._answer(item, next(answers), context, n) if isinstance(item, Request) else _error(item, "", context, n)
            for n, item in enumerate(items)
        ]

    def start(self, engine: Engine, config: Mapping[str, Any], context: Any) -> None:
        """Ready from now on, with the archive's limits."""
        self.limits = Limits(**(config.get("limits") or {}))
        self.largest_reply = _LARGEST_BATCH // max(1, int(context.system_properties.get("batch_size") or 1))
        self.engine = engine
        self.initialized = True

    def _read(self, item: dict[str, Any], context: Any, n: int) -> Request | ConvLensError:
        headers = context.get_all_request_header(n) or {}
        try:
            return read_request(
                item,
                headers,
                explain=str(headers.get("explain", "")).lower() == "true",
                path_method=str(headers.get("url_path", "")).strip("/"),
                limits=self.limits,
            )
        except ConvLensError as error:
            return error

    def _answer(self, request: Request, reply: Reply | ConvLensError, context: Any, n: int) -> str:
        if isinstance(reply, ConvLensError):
            return _error(reply, request.params.request_id, context, n)
        text = dumps(to_json(reply, request.params))
        if len(text) > self.largest_reply:
            return _error(_too_large(len(text), self.largest_reply), request.params.request_id, context, n)
        context.set_response_content_type(n, "application/json")
        return text


def section(context: Any) -> dict[str, Any]:
    """The archive's configuration for the handler."""
    return dict((context.model_yaml_config or {}).get("convlens") or {})


def engine_options(config: Mapping[str, Any], context: Any) -> EngineOptions:
    """What the archive says of name, version, default methods and budget."""
    return EngineOptions(
        name=str(context.model_name),
        version=str(context.manifest["model"].get("modelVersion", "1.0")),
        default_methods=tuple(config.get("methods") or EngineOptions.default_methods),
        max_cost=float(config.get("max_cost") or EngineOptions.max_cost),
    )


def given_gpu(context: Any) -> int | None:
    """The GPU that TorchServe gave this worker, None for the CPU; ModelError where one was asked for and none given."""
    gpu_id = context.system_properties.get("gpu_id")
    if gpu_id is None and (context.model_yaml_config or {}).get("deviceType") == "gpu":
        raise ModelError("deviceType is gpu, but TorchServe gave this worker none; is nvidia-smi on its PATH?")
    return None if gpu_id is None else int(gpu_id)


def _too_large(size: int, allowed: int) -> RequestError:
    return RequestError(
        f"the reply would have {size / 1e6:.1f} MB and {allowed / 1e6:.1f} are allowed; "
        "ask for fewer methods, for fewer outputs, or for smaller arrays by reduce or dtype '<f2'",
        field="methods",
    )


def _error(error: ConvLensError, request_id: str, context: Any, n: int) -> str:
    # The phrase is a constant of ours: a line break in it would kill the worker.
    context.set_response_content_type(n, "application/json")
    context.set_response_status(error.status, type(error).__name__, n)
    return dumps(error_json(error, request_id=request_id))
