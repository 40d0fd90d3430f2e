"""What Prometheus is told: per request and method how many, how long, how many windows and what went wrong.

Labels hold the model entry's name, names from the registry and of our error classes, never anything that a client sent:
each is a time series that lives as long as the server. The server keeps the numbers, so they outlive a worker.

What those who run a worker see of its requests: metrics, and a line in the log for each.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from convlens import explain
from convlens.engine.batch import RequestRecord
from convlens.errors import ConvLensError, error_type
from convlens.serving.structured_logging import log_request

_log = logging.getLogger(__name__)
PREDICT = "predict"  # the method of a request that called none
OTHER = "other"
_LEVEL = "Model"
_COMMON = ("ModelName", "Level")

# Name -> its own labels, as handlers/metrics.yaml declares them to the server.
COUNTERS = {
    "convlens_requests_total": ("method", "code"),
    "convlens_errors_total": ("type", "code"),
    "convlens_windows_total": ("method",),
    "convlens_reply_bytes_total": (),
}
HISTOGRAMS = {
    "convlens_seconds": ("method", "outcome"),
    "convlens_request_seconds": ("outcome",),
    "convlens_queue_wait_seconds": (),
}


class Instrument(Protocol):
    """A metric of the server's: its labels' names, and a value added under some values of them."""

    dimension_names: list[str]

    def add_or_update(self, value: float, dimension_values: list[str] = ...) -> None: ...


@dataclass(frozen=True)
class Sample:
    """One number for one metric; ``labels`` are the values of the metric's own labels, in their order."""

    metric: str
    labels: tuple[str, ...]
    value: float


class Metrics:
    """The metrics of one model entry.

    ``cache`` is the server's ``context.metrics.cache``: kind of metric -> name -> metric, from its metrics.yaml. What
    is not declared there, or with other labels, is left out and named once in the log: the server would drop it line
    by line.
    """

    def __init__(self, cache: Mapping[Any, Mapping[str, Instrument]], model: str) -> None:
        self._common = [model, _LEVEL]
        kinds = {str(getattr(kind, "value", kind)): named for kind, named in cache.items()}
        wanted = {"counter": COUNTERS, "histogram": HISTOGRAMS}
        declared = {kind: kinds.get(kind, {}) for kind in wanted}
        self._instruments = {
            name: declared[kind][name]
            for kind, named in wanted.items()
            for name, labels in named.items()
            if name in declared[kind] and tuple(declared[kind][name].dimension_names) == (*_COMMON, *labels)
        }
        if missing := sorted({*COUNTERS, *HISTOGRAMS} - set(self._instruments)):
            _log.warning(
                "not measured, for the server's metrics_config does not declare them so: %s; use handlers/metrics.yaml",
                ", ".join(missing),
            )

    def batch(self, reports: Iterable[RequestRecord], *, reply_bytes: int = 0) -> None:
        """Count the requests of one batch, whose replies have so many bytes together."""
        for sample in samples(reports, reply_bytes=reply_bytes):
            instrument = self._instruments.get(sample.metric)
            if instrument is not None:
                instrument.add_or_update(sample.value, [*self._common, *sample.labels])


def samples(reports: Iterable[RequestRecord], *, reply_bytes: int = 0) -> Iterator[Sample]:
    """What a batch adds to which metric: counts summed up over it, durations one by one.

    A method that a request calls twice counts once, with the seconds and windows of both calls.
    """
    counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for report in reports:
        code, outcome = str(report.error.status if report.error else 200), _outcome(report.error)
        for method, seconds, windows in _methods(report):
            counts["convlens_requests_total", (method, code)] += 1
            counts["convlens_windows_total", (method,)] += windows
            yield Sample("convlens_seconds", (method, outcome), seconds)
        yield Sample("convlens_request_seconds", (outcome,), report.seconds)
        if report.queue_wait_s is not None:
            yield Sample("convlens_queue_wait_seconds", (), report.queue_wait_s)
        if report.error is not None:
            counts["convlens_errors_total", (error_type(report.error), code)] += 1
    counts["convlens_reply_bytes_total", ()] += reply_bytes
    yield from (Sample(metric, labels, count) for (metric, labels), count in counts.items() if count)


def _outcome(error: ConvLensError | None) -> str:
    """``refused``: the client can mend it; ``failed``: the server could not."""
    if error is None:
        return "answered"
    return "refused" if error.status < 500 else "failed"


def _methods(report: RequestRecord) -> Iterator[tuple[str, float, int]]:
    """Each method with its seconds and windows; without any, predictions with the seconds of the whole request."""
    known = explain.available_methods()
    calls: dict[str, tuple[float, int]] = {}
    for call in report.methods:
        name = call.method if call.method in known else OTHER
        seconds, windows = calls.get(name, (0.0, 0))
        calls[name] = seconds + call.seconds, windows + call.windows
    for name, (seconds, windows) in (calls or {PREDICT: (report.seconds, 0)}).items():
        yield name, seconds, windows


class Telemetry:
    """Of one model entry; ``cache`` as for Metrics."""

    def __init__(self, cache: Any, model: str) -> None:
        self._model = model
        self._metrics = Metrics(cache, model)

    def batch(self, reports: Sequence[RequestRecord], bodies: Sequence[str | bytes]) -> None:
        """What became of every picture of one batch, and the bodies of its replies."""
        self._metrics.batch(reports, reply_bytes=sum(map(len, bodies)))
        for report in reports:
            log_request(report, model=self._model, batch=len(reports))


def unreadable_request(error: ConvLensError, seconds: float) -> RequestRecord:
    """A request that could not even be read."""
    return RequestRecord("", (), None, seconds, error)


def with_outcome(report: RequestRecord, outcome: object) -> RequestRecord:
    """The report, with the error that the client got instead of the answer, where it got one.

    The answer was ready, but its form could not be made; or a neighbour in the same body failed.
    """
    return replace(report, error=outcome) if isinstance(outcome, ConvLensError) else report
