"""What those who run a worker see of its requests: metrics, and a line in the log for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from convlens.errors import ConvLensError
from convlens.service.logs import log_request
from convlens.service.metrics import Metrics
from convlens.service.seen import RowReport


class Watch:
    """Of one model entry; ``cache`` as for Metrics."""

    def __init__(self, cache: Any, model: str) -> None:
        self._model = model
        self._metrics = Metrics(cache, model)

    def batch(self, reports: Sequence[RowReport], bodies: Sequence[str | bytes]) -> None:
        """What became of every picture of one batch, and the bodies of its replies."""
        self._metrics.batch(reports, reply_bytes=sum(map(len, bodies)))
        for report in reports:
            log_request(report, model=self._model, batch=len(reports))


def unread(error: ConvLensError, seconds: float) -> RowReport:
    """A request that could not even be read."""
    return RowReport("", (), None, seconds, error)


def with_outcome(report: RowReport, outcome: object) -> RowReport:
    """The report, with the error that the client got instead of the answer, where it got one.

    The answer was ready, but its form could not be made; or a neighbour in the same body failed.
    """
    return replace(report, error=outcome) if isinstance(outcome, ConvLensError) else report
