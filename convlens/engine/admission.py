"""Nothing starts that cannot end: what requests cost, and whether an engine's limits and a batch's time allow it.

A worker answers a batch as a whole, and its server kills it, with the whole batch, when that takes too long. Limits on
single requests are therefore not enough: rows that would each be quick enough may be too many together.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from convlens.engine.backend import EngineOptions
from convlens.engine.batch import Row
from convlens.engine.cost_model import CostModel, Key
from convlens.engine.evaluation import EVALUATE
from convlens.engine.method_calls import MethodCall, with_cost
from convlens.errors import OverloadError, RequestError
from convlens.explain.sweeps.autotune import SweepAutotuner
from convlens.protocol.deadline import Deadline
from convlens.protocol.params import LEAST_STEPS, Params
from convlens.protocol.requests import Request

# To draw an image and pack it as PNG, per pixel: 0.2 to 0.3 µs on the machine that was measured, whatever the method.
_DRAWING_S = 0.3e-6
_STALE_S = 10.0  # an older calibration refuses nothing
_TOLERANCE = 1.1  # what was expected just to fit may take a little longer

CostOf = Callable[[MethodCall], float]


class AdmissionController:
    """Admits the requests that stay within the engine's limits, and tells the others what would.

    ``size`` is the height and width of the model's input; ``calibrate`` measures a forward pass; ``sweeps`` gives the
    engine's sweep backends, on which the pace of occlusion depends.
    """

    def __init__(
        self,
        options: EngineOptions,
        size: tuple[int, int],
        costs: CostModel,
        *,
        calibrate: Callable[[], None],
        sweeps: Callable[[], SweepAutotuner],
    ) -> None:
        self._options, self._size, self._costs = options, size, costs
        self._pixels = size[0] * size[1]
        self._calibrate, self._sweeps = calibrate, sweeps

    def key(self, call: MethodCall) -> Key:
        """Under which the cost model knows it, by the sweep backend that it would use now."""
        return call.method.name, call.method.rate_key(call.options, self._size, self._sweeps())

    def call_seconds(self, call: MethodCall) -> float:
        """What the method takes for one image; 0 before anything was measured."""
        return self._costs.seconds(self.key(call), call.cost)

    @property
    def evaluation_key(self) -> Key:
        """Under which the cost model knows evaluations."""
        return EVALUATE, ""

    def evaluation_seconds(self, call: MethodCall) -> float:
        """What the evaluation of the method's map takes; 0 without one, and before anything was measured."""
        return self._costs.seconds(self.evaluation_key, call.evaluation_cost)

    def _evaluated_seconds(self, call: MethodCall) -> float:
        return self.call_seconds(call) + self.evaluation_seconds(call)

    def seconds(self, calls: Sequence[MethodCall], params: Params, pixels: int) -> float:
        """What answering takes: a forward pass, the methods, their evaluations and drawings, of ``pixels`` in original
        size.
        """
        if self._costs.age == float("inf"):
            self._calibrate()
        drawings = sum(call.method.drawing != "thumbnails" for call in calls)
        overlays = drawings * (pixels if params.size == "original" else self._pixels) * ("overlay" in params.output)
        heatmaps = drawings * self._pixels * ("heatmap" in params.output)
        work = self._costs.forward_seconds() + sum(map(self._evaluated_seconds, calls))
        return work + (overlays + heatmaps) * _DRAWING_S

    def require_cost(self, calls: Sequence[MethodCall]) -> None:
        """RequestError for more forward passes than ``max_cost``, with what would fit."""
        cost, limit = sum(map(_evaluated_cost, calls)), self._options.max_cost
        if cost <= limit:
            return
        advice, field = self._suggest_fit(calls, _evaluated_cost, limit, unit=lambda n: f"{n:.0f} forward passes")
        raise RequestError(
            f"this request costs about {cost:.0f} forward passes and {limit:.0f} are allowed; {advice}", field=field
        )

    def require_seconds(self, request: Request, deadline: Deadline, calls: Sequence[MethodCall]) -> float:
        """The seconds that the request is expected to take.

        RequestError (422) where that is longer than allowed even on an idle worker, DeadlineError (504) where it is too
        long only because the request has waited.
        """
        limit_s, allowed_s = self._options.max_seconds, deadline.allowed_s
        pixels = request.image.width * request.image.height
        seconds = self.seconds(calls, request.params, pixels)
        # An estimate that refuses must be fresh. Otherwise one busy moment would refuse for ever: what is refused is
        # not run, so its estimate is not corrected either.
        if seconds > min(deadline.left_s, limit_s or float("inf")) and self._costs.age > _STALE_S:
            self._calibrate()
            seconds = self.seconds(calls, request.params, pixels)
        if limit_s is not None and seconds > limit_s:
            raise self._too_long(calls, seconds, limit_s, f"{_format_seconds(limit_s)} are allowed")
        if allowed_s is not None and seconds > allowed_s:
            error = self._too_long(calls, seconds, allowed_s, f"deadline_ms allows {_format_seconds(allowed_s)}")
            error.field = "deadline_ms"
            raise error
        deadline.require(seconds)
        return seconds

    def _too_long(self, calls: Sequence[MethodCall], seconds: float, limit_s: float, limit: str) -> RequestError:
        for_calls_s = limit_s - (seconds - sum(map(self._evaluated_seconds, calls)))
        advice, field = self._suggest_fit(calls, self._evaluated_seconds, for_calls_s, unit=_format_seconds)
        message = f"this request would take about {_format_seconds(seconds)} and {limit}; {advice or 'allow more'}"
        return RequestError(message, field=field)

    # --- what would fit ---------------------------------------------------------------------------------------------

    def _suggest_fit(
        self, calls: Sequence[MethodCall], cost_of: CostOf, limit: float, *, unit: Callable[[float], str]
    ) -> tuple[str, str]:
        """Advice, and the field of the request that it concerns: each change that alone makes all calls together fit
        ``limit`` (one option of one call, or another evaluation), else what each call costs.
        """
        excess = sum(map(cost_of, calls)) - limit
        fits = [(call, option) for call in calls if (option := self._cheaper(call, cost_of, cost_of(call) - excess))]
        evaluations = _cheaper_evaluations(calls, cost_of, limit)
        without, fits_without = _without_evaluation(calls, cost_of, limit, unit)
        if not fits and not evaluations:
            return f"{_costs_of_each(calls, cost_of, unit)}{without}", EVALUATE if fits_without else "methods"
        field = "methods" if fits else EVALUATE
        if len(fits) == 1 and not evaluations and (place := fits[0][0].place):
            field = f"{place}.options.{fits[0][1].partition('=')[0]}"
        changes = [*(f"{call.id} with {option}" for call, option in fits), *evaluations]
        return f"{', or '.join(changes)} would fit{without}", field

    def _cheaper(self, call: MethodCall, cost_of: CostOf, limit: float) -> str:
        """``stride=7 or larger``; empty where no value of the method's own option makes the call fit."""
        option, values = call.method.cheaper_values(call.options)

        def fits(value: int) -> bool:
            options = {**call.options, option: value}
            return cost_of(with_cost(replace(call, options=options), self._size)) <= limit

        # The values go from the next cheaper one to the cheapest, so ``fits`` is False up to a point and True beyond.
        at = bisect.bisect_left(values, True, key=fits)
        if at == len(values):
            return ""
        return f"{option}={values[at]} or {'larger' if values.step > 0 else 'fewer'}"


def _evaluated_cost(call: MethodCall) -> float:
    return call.cost + call.evaluation_cost


def _cheaper_evaluations(calls: Sequence[MethodCall], cost_of: CostOf, limit: float) -> list[str]:
    """``evaluate with steps=10 or fewer`` and ``evaluate for saliency alone``, as far as these fit."""
    evaluated = [call for call in calls if call.evaluation]
    asked_steps = max((call.evaluation.steps for call in calls if call.evaluation), default=0)

    def fits(steps: int) -> bool:
        return sum(cost_of(call.with_steps(steps)) for call in calls) <= limit

    steps = range(asked_steps - 1, LEAST_STEPS - 1, -1)
    at = bisect.bisect_left(steps, True, key=fits)
    fewer = [f"evaluate with steps={steps[at]} or fewer"] if at < len(steps) else []
    alone = [call.id for call in evaluated if len(calls) > 1 and cost_of(call) <= limit]
    return [*fewer, *([f"evaluate for {' or '.join(alone)} alone"] if alone else [])]


def _without_evaluation(
    calls: Sequence[MethodCall], cost_of: CostOf, limit: float, unit: Callable[[float], str]
) -> tuple[str, bool]:
    """What the calls cost without being evaluated, in words, and whether that fits; empty where none is."""
    if not any(call.evaluation for call in calls):
        return "", False
    cost = sum(cost_of(replace(call, evaluation=None)) for call in calls)
    fits = cost <= limit
    return f"; without evaluate this costs about {unit(cost)}{' and would fit' if fits else ''}", fits


def _costs_of_each(calls: Sequence[MethodCall], cost_of: CostOf, unit: Callable[[float], str]) -> str:
    if len(calls) > 1:
        each = ", ".join(f"{call.id} {unit(cost_of(call))}" for call in calls)
        return f"of this {each}; ask for fewer at a time"
    for call in calls:
        option, values = call.method.cheaper_values(call.options)
        if values:
            return f"not even {call.id} with {option}={values[-1]} would fit"
        return f"no single option makes {call.id} cheaper; ask for larger windows or another method"
    return ""


class TimeBudget:
    """``limit_s`` for a whole batch from ``started`` (by time.perf_counter()) on; None for no limit.

    Work is admitted up to the limit; it is stopped, or not started, when a tenth more would be exceeded.
    """

    def __init__(self, limit_s: float | None, *, started: float) -> None:
        self._limit_s = limit_s
        self._started = started

    def admit(self, rows: Sequence[Row]) -> None:
        """Give an error to those rows for which there will be no time.

        Light work first: predictions before explanations, and those before sweeps, otherwise in order. A sweep that
        would make an admitted row miss its deadline is not admitted, so no sweep costs a prediction its answer.
        """
        planned_s, admitted = time.perf_counter() - self._started, list[Row]()  # the reading, to begin with
        for row in sorted(rows, key=lambda row: (row.heavy, bool(row.calls))):
            row.error = self._refusal(row, planned_s + row.seconds, admitted)
            if row.error is None:
                planned_s += row.seconds
                admitted.append(row)

    def require(self, deadline: Deadline, seconds: float) -> None:
        """OverloadError or DeadlineError where there is no time left for so many seconds of work on this row."""
        deadline.require(seconds)
        spent_s = time.perf_counter() - self._started
        if self._limit_s is not None and spent_s + seconds > self._limit_s * _TOLERANCE:
            raise OverloadError(
                f"{_format_seconds(spent_s)} of the {_format_seconds(self._limit_s)} that a batch may take are spent"
                f"{f', and this takes about {_format_seconds(seconds)}' if seconds else ''}; try again"
            )

    def _refusal(self, row: Row, end_s: float, admitted: Sequence[Row]) -> OverloadError | None:
        # Alone every row fits: ``require_seconds`` has let it in.
        if not admitted:
            return None
        if self._limit_s is not None and end_s > self._limit_s:
            return OverloadError(
                f"together with the requests before it this would take about {_format_seconds(end_s)} and "
                f"{_format_seconds(self._limit_s)} are allowed; try again"
            )
        due = [other.deadline.due for other in (*admitted, row) if other.deadline.due is not None]
        if row.heavy and due and self._started + end_s > min(due):
            return OverloadError(
                "the worker has other work, and no deadline would be kept with this beside it; try again"
            )
        return None


def _format_seconds(seconds: float) -> str:
    """Two or three figures: 210 s, 9.6 s, 35 ms."""
    if seconds >= 10:
        return f"{seconds:.0f} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
