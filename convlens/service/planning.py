"""What a request will take, in forward passes and in seconds, and whether that is allowed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from convlens import explain
from convlens.errors import RequestError
from convlens.explain.sweeps import Sweeps
from convlens.service.arrival import Arrival
from convlens.service.batch import Task
from convlens.service.cost import Costs, Key
from convlens.service.fitting import said, what_fits
from convlens.service.options import EngineOptions
from convlens.service.request import Job, Params, Request

# A picture drawn and packed as PNG, by its pixels: 0.2 to 0.3 on the machine that was measured, whatever the method.
_DRAWN_S = 0.3e-6
_STALE_S = 10.0


class Planner:
    """Holds the engine's limits against what requests ask. ``side`` is the model's input in pixels.

    ``calibrate`` measures a forward pass; ``sweeps`` gives the engine's ways of sweeping.
    """

    def __init__(
        self,
        options: EngineOptions,
        side: int,
        costs: Costs,
        *,
        calibrate: Callable[[], None],
        sweeps: Callable[[], Sweeps],
    ) -> None:
        self._options, self._side, self._costs = options, side, costs
        self._calibrate, self._sweeps = calibrate, sweeps

    def key(self, job: Job) -> Key:
        """Under which its seconds are learnt, by the way it would go now."""
        return job.method, explain.get(job.method).pace(job.options, self._side, self._sweeps())

    def job_seconds(self, job: Job) -> float:
        """What the method takes for one picture; 0 before anything was measured."""
        return self._costs.seconds(self.key(job), explain.get(job.method).cost(job.options, self._side))

    def seconds(self, jobs: Sequence[Job], params: Params, pixels: int) -> float:
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

        def passes(job: Job) -> float:
            return explain.get(job.method).cost(job.options, self._side)

        advice, about = what_fits([task.job for task in tasks], passes, limit, say=lambda n: f"{n:.0f} forward passes")
        raise RequestError(
            f"this request costs about {cost:.0f} forward passes and {limit:.0f} are allowed; {advice}", field=about
        )

    def require_seconds(self, request: Request, arrival: Arrival, jobs: Sequence[Job]) -> float:
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

    def _least(self, arrival: Arrival) -> float:
        left = float("inf") if arrival.due is None else arrival.due - time.perf_counter()
        return min(left, self._options.max_seconds or float("inf"))

    def _refuse(self, jobs: Sequence[Job], seconds: float, limit_s: float, limit: str, *, field: str = "") -> None:
        advice, about = what_fits(jobs, self.job_seconds, limit_s - (seconds - sum(map(self.job_seconds, jobs))))
        raise RequestError(
            f"this request would take about {said(seconds)} and {limit}; {advice or 'allow more'}",
            field=field or about,
        )
