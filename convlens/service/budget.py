"""The seconds that one batch may take: which rows are let in, and whether there is time for the next job.

The worker answers a batch as a whole, and a server kills it with the whole batch when that takes too long. So rows that
would each be quick enough may be too many together; then the cheap ones go first, and a sweep never costs a prediction
its answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from convlens.errors import OverloadError
from convlens.service.arrival import Arrival
from convlens.service.batch import Row
from convlens.service.fitting import said

_TOLERANCE = 1.1  # what was expected just to fit may take a little longer


class Budget:
    """``limit_s`` for everything from ``started`` (by time.perf_counter()) on; None for no limit.

    It is what may be planned; work is stopped, or not begun, when a tenth more would be exceeded.
    """

    def __init__(self, limit_s: float | None, *, started: float) -> None:
        self._limit_s = limit_s
        self._started = started

    def admit(self, rows: Sequence[Row]) -> None:
        """Give those an error for which there will be no time.

        Predictions go before explanations, and those before sweeps; otherwise in order. No sweep is let in that would
        make a row before it miss its deadline.
        """
        planned, admitted = 0.0, list[Row]()
        for row in sorted(rows, key=lambda row: (row.heavy, bool(row.tasks))):
            row.error = self._refusal(row, planned + row.seconds, admitted)
            if row.error is None:
                planned += row.seconds
                admitted.append(row)

    def require(self, arrival: Arrival, seconds: float) -> None:
        """OverloadError or DeadlineError where there is no time left for so many seconds of work on this row."""
        now = time.perf_counter()
        arrival.require(seconds, now=now)
        spent = now - self._started
        if self._limit_s is not None and spent + seconds > self._limit_s * _TOLERANCE:
            raise OverloadError(
                f"{said(spent)} of the {said(self._limit_s)} that a batch may take are spent"
                f"{f', and this takes about {said(seconds)}' if seconds else ''}; try again"
            )

    def _refusal(self, row: Row, end: float, admitted: Sequence[Row]) -> OverloadError | None:
        if not admitted:
            return None
        if self._limit_s is not None and end > self._limit_s:
            return OverloadError(
                f"together with the requests before it this would take about {said(end)} and {said(self._limit_s)} are "
                "allowed; try again"
            )
        due = [one.arrival.due for one in (*admitted, row) if one.arrival.due is not None]
        if row.heavy and due and self._started + end > min(due):
            return OverloadError(
                "the worker has other work, and no deadline would be kept with this beside it; try again"
            )
        return None
