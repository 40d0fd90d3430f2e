"""What those who run a worker see of its requests: metrics for Prometheus, and a line in the log for each request.

Labels hold the model entry's name, names from the registry and of our error classes, never anything that a client sent:
each is a time series that lives as long as the server. The server keeps the numbers, so they outlive a worker.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from convlens import explain
from convlens.engine.batch import RequestRecord
from convlens.engine.evaluation import EVALUATE
from convlens.errors import ConvLensError, error_type
from convlens.serving.structured_logging import log_request

_log = logging.getLogger(__name__)

_PREDICT = "predict"  # the method of a request that calls none
_OTHER = "other"  # any method that is neither in the registry nor the evaluation of maps
_LEVEL = "Model"
COMMON_LABELS = ("ModelName", "Level")
# Name -> its own labels, as handlers/metrics.yaml declares them to the server.
COUNTERS = {
    "convlens_requests_total": ("method", "code"),
    "convlens_errors_total": ("type", "code"),
    "convlens_windows_total": ("method",),
    "convlens_reply_bytes_total": (),
}
# In seconds, because the buckets of TorchServe's histograms go from 0.005 to 10.
HISTOGRAMS = {
    "convlens_seconds": ("method", "outcome"),
    "convlens_request_seconds": ("outcome",),
    "convlens_queue_wait_seconds": (),
}


class _Instrument(Protocol):
    """A metric of the server's: its labels' names, and a value added under some values of them."""

    dimension_names: list[str]

    def add_or_update(self, value: float, dimension_values: list[str] = ...) -> None: ...


class Telemetry:
    """The metrics and log lines of one model entry.

    ``cache`` is the server's ``context.metrics.cache``: kind of metric -> name -> metric, from its metrics.yaml. What
    is not declared there, or with other labels, is left out and named once in the log.
    """

    def __init__(self, cache: Mapping[Any, Mapping[str, _Instrument]], model: str) -> None:
        self._model = model
        declared = {str(getattr(kind, "value", kind)): metrics for kind, metrics in cache.items()}
        self._instruments = {
            name: instrument
            for kind, ours in (("counter", COUNTERS), ("histogram", HISTOGRAMS))
            for name, instrument in declared.get(kind, {}).items()
            # TorchServe matches values to labels by their order alone, and drops lines that do not fit one by one.
            if name in ours and tuple(instrument.dimension_names) == (*COMMON_LABELS, *ours[name])
        }
        if missing := sorted({*COUNTERS, *HISTOGRAMS} - set(self._instruments)):
            _log.warning(
                "not measured, for the server's metrics_config does not declare them so: %s; use handlers/metrics.yaml",
                ", ".join(missing),
            )

    def record(self, records: Sequence[RequestRecord], *, reply_bytes: int = 0) -> None:
        """Count and log every request of one batch, whose replies have so many bytes together."""
        for sample in samples(records, reply_bytes=reply_bytes):
            instrument = self._instruments.get(sample.metric)
            if instrument is not None:
                instrument.add_or_update(sample.value, [self._model, _LEVEL, *sample.labels])
        for record in records:
            log_request(record, model=self._model, batch=len(records))


@dataclass(frozen=True)
class Sample:
    """One number for one metric; ``labels`` are the values of the metric's own labels, in their order."""

    metric: str
    labels: tuple[str, ...]
    value: float


def samples(records: Iterable[RequestRecord], *, reply_bytes: int = 0) -> Iterator[Sample]:
    """What a batch adds to which metric: counts summed up over it, durations one by one.

    A method that a request calls twice counts once, with the seconds and windows of both calls.
    """
    counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for record in records:
        for method, seconds, windows, error in _methods(record):
            counts["convlens_requests_total", (method, _code(error))] += 1
            counts["convlens_windows_total", (method,)] += windows
            yield Sample("convlens_seconds", (method, _outcome(error)), seconds)
        yield Sample("convlens_request_seconds", (_outcome(record.error),), record.seconds)
        if record.queue_wait_s is not None:
            yield Sample("convlens_queue_wait_seconds", (), record.queue_wait_s)
        if record.error is not None:
            counts["convlens_errors_total", (error_type(record.error), _code(record.error))] += 1
    counts["convlens_reply_bytes_total", ()] += reply_bytes
    yield from (Sample(metric, labels, count) for (metric, labels), count in counts.items() if count)


def _code(error: ConvLensError | None) -> str:
    return str(error.status if error else 200)


def _outcome(error: ConvLensError | None) -> str:
    """``refused``: the client can mend it; ``failed``: the server could not answer."""
    if error is None:
        return "answered"
    return "refused" if error.status < 500 else "failed"


def _methods(record: RequestRecord) -> Iterator[tuple[str, float, int, ConvLensError | None]]:
    """Each method with its seconds, its windows, and the request's error or its own; without any method, predictions
    with the seconds of the whole request.
    """
    known = {*explain.available_methods(), EVALUATE}
    totals: dict[str, tuple[float, int, ConvLensError | None]] = {}
    for call in record.methods:
        name = call.method if call.method in known else _OTHER
        seconds, windows, error = totals.get(name, (0.0, 0, record.error))
        totals[name] = seconds + call.seconds, windows + call.windows, error or call.error
    for name, total in (totals or {_PREDICT: (record.seconds, 0, record.error)}).items():
        yield name, *total


def unreadable_request(error: ConvLensError, seconds: float) -> RequestRecord:
    """The record of a request that could not even be read."""
    return RequestRecord("", (), None, seconds, error)


def with_outcome(record: RequestRecord, outcome: object) -> RequestRecord:
    """The record, with the error that the client got instead of the answer, where it got one."""
    # The engine's answer was ready, but its form could not be made, or another image of the same body failed.
    return replace(record, error=outcome) if isinstance(outcome, ConvLensError) else record
