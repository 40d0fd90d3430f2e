"""What would fit: the next cheaper value of an option with which a request that takes too long does not.

The seconds that one batch may take: which rows are let in, and whether there is time for the next job.

The worker answers a batch as a whole, and a server kills it with the whole batch when that takes too long. So rows that
would each be quick enough may be too many together; then the cheap ones go first, and a sweep never costs a prediction
its answer.

What a request will take, in forward passes and in seconds, and whether that is allowed.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from convlens import explain
from convlens.engine.batch import Row, Task
from convlens.engine.cost_model import CostModel, Key
from convlens.engine.deadline import Deadline
from convlens.engine.method_calls import MethodCall
from convlens.engine.options import EngineOptions
from convlens.errors import OverloadError, RequestError
from convlens.explain.sweeps.autotune import SweepAutotuner
from convlens.protocol.params import Params
from convlens.protocol.requests import Request

Seconds = Callable[[MethodCall], float]


def said(seconds: float) -> str:
    """Two or three figures: 210 s, 9.6 s, 35 ms."""
    if seconds >= 10:
        return f"{seconds:.0f} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def suggest_fit(
    jobs: Sequence[MethodCall], seconds_of: Seconds, limit_s: float, *, say: Callable[[float], str] = said
) -> tuple[str, str]:
    """Advice, and the field of the request that it is about: one option that alone makes it fit, else what each takes.

    ``limit_s`` is for all jobs together. Another unit than seconds will do, where ``say`` names it.
    """
    over = sum(map(seconds_of, jobs)) - limit_s
    fits = [(text, job) for job in jobs if (text := _cheaper(job, seconds_of, seconds_of(job) - over))]
    if not fits:
        return _what_each_takes(jobs, seconds_of, say), "methods"
    first, job = fits[0]
    option = f"{job.place}.options.{first.partition('=')[0]}" if len(fits) == 1 and job.place else "methods"
    return f"{', or '.join(f'{job.id} with {text}' for text, job in fits)} would fit", option


def _what_each_takes(jobs: Sequence[MethodCall], seconds_of: Seconds, say: Callable[[float], str]) -> str:
    if len(jobs) > 1:
        each = ", ".join(f"{job.id} {say(seconds_of(job))}" for job in jobs)
        return f"of this {each}; ask for fewer at a time"
    for job in jobs:
        option, values = explain.get(job.method).cheaper_values(job.options)
        if values:
            return f"not even {job.id} with {option}={values[-1]} would fit"
        return f"no one option makes {job.id} cheaper; ask for larger windows or another method"
    return ""


def _cheaper(job: MethodCall, seconds_of: Seconds, limit_s: float) -> str:
    """``stride=7 or larger``; empty where no value of its own makes the job fit."""
    option, values = explain.get(job.method).cheaper_values(job.options)

    def fits(value: int) -> bool:
        return seconds_of(replace(job, options={**job.options, option: value})) <= limit_s

    at = bisect.bisect_left(values, True, key=fits)
    if at == len(values):
        return ""
    return f"{option}={values[at]} or {'larger' if values.step > 0 else 'fewer'}"


_TOLERANCE = 1.1  # what was expected just to fit may take a little longer


class TimeBudget:
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

    def require(self, arrival: Deadline, seconds: float) -> None:
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


# A picture drawn and packed as PNG, by its pixels: 0.2 to 0.3 on the machine that was measured, whatever the method.
_DRAWN_S = 0.3e-6
_STALE_S = 10.0


class AdmissionController:
    """Holds the engine's limits against what requests ask. ``side`` is the model's input in pixels.

    ``calibrate`` measures a forward pass; ``sweeps`` gives the engine's ways of sweeping.
    """

    def __init__(
        self,
        options: EngineOptions,
        side: int,
        costs: CostModel,
        *,
        calibrate: Callable[[], None],
        sweeps: Callable[[], SweepAutotuner],
    ) -> None:
        self._options, self._side, self._costs = options, side, costs
        self._calibrate, self._sweeps = calibrate, sweeps

    def key(self, job: MethodCall) -> Key:
        """Under which its seconds are learnt, by the way it would go now."""
        return job.method, explain.get(job.method).rate_key(job.options, self._side, self._sweeps())

    def job_seconds(self, job: MethodCall) -> float:
        """What the method takes for one picture; 0 before anything was measured."""
        return self._costs.seconds(self.key(job), explain.get(job.method).cost(job.options, self._side))

    def seconds(self, jobs: Sequence[MethodCall], params: Params, pixels: int) -> float:
        """What answering takes: a forward pass, the methods and their pictures, of so many pixels in original size."""
        if self._costs.age == float("inf"):
            self._calibrate()
        drawn = sum(explain.get(job.method).drawing != "thumbnails" for job in jobs)
        overlays = drawn * (pixels if params.size == "original" else self._side**2) * ("overlay" in params.output)
        heatmaps = drawn * self._side**2 * ("heatmap" in params.output)
        work = self._costs.forward_seconds() + sum(map(self.job_seconds, jobs))
        return work + (overlays + heatmaps) * _DRAWN_S

    def require_cost(self, tasks: Sequence[Task]) -> None:
        """RequestError for more forward passes than ``max_cost``, with what would fit."""
        cost, limit = sum(task.cost for task in tasks), self._options.max_cost
        if cost <= limit:
            return

        def passes(job: MethodCall) -> float:
            return explain.get(job.method).cost(job.options, self._side)

        advice, about = suggest_fit(
            [task.job for task in tasks], passes, limit, say=lambda n: f"{n:.0f} forward passes"
        )
        raise RequestError(
            f"this request costs about {cost:.0f} forward passes and {limit:.0f} are allowed; {advice}", field=about
        )

    def require_seconds(self, request: Request, arrival: Deadline, jobs: Sequence[MethodCall]) -> float:
        """What it is expected to take.

        RequestError (422) where it would take longer than is allowed however idle the worker is, DeadlineError (504)
        where only because of how long it has waited.
        """
        limit_s, allowed_s = self._options.max_seconds, arrival.allowed_s
        pixels = request.picture.width * request.picture.height
        seconds = self.seconds(jobs, request.params, pixels)
        if seconds > self._least(arrival) and self._costs.age > _STALE_S:
            self._calibrate()  # an estimate that refuses must be fresh: otherwise one busy moment refuses for ever
            seconds = self.seconds(jobs, request.params, pixels)
        if limit_s is not None and seconds > limit_s:
            self._refuse(jobs, seconds, limit_s, f"{said(limit_s)} are allowed")
        if allowed_s is not None and seconds > allowed_s:
            self._refuse(jobs, seconds, allowed_s, f"deadline_ms allows {said(allowed_s)}", field="deadline_ms")
        arrival.require(seconds, now=time.perf_counter())
        return seconds

    def _least(self, arrival: Deadline) -> float:
        left = float("inf") if arrival.due is None else arrival.due - time.perf_counter()
        return min(left, self._options.max_seconds or float("inf"))

    def _refuse(
        self, jobs: Sequence[MethodCall], seconds: float, limit_s: float, limit: str, *, field: str = ""
    ) -> None:
        advice, about = suggest_fit(jobs, self.job_seconds, limit_s - (seconds - sum(map(self.job_seconds, jobs))))
        raise RequestError(
            f"this request would take about {said(seconds)} and {limit}; {advice or 'allow more'}",
            field=field or about,
        )
