"""The boundary around one row: whatever goes wrong with it becomes its own error and no neighbour's.

A batch on its way through the model: what rows share they compute together, and a row that fails is tried alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ParamSpec, TypeVar

import numpy as np

from convlens import explain
from convlens.engine.admission import AdmissionController, TimeBudget
from convlens.engine.batch import BatchEntry, MethodRecord, Row, by_kind, heavy_calls, light_calls
from convlens.engine.cost_model import CostModel
from convlens.engine.method_calls import MethodCall
from convlens.engine.rendering import explanation, top
from convlens.errors import ConvLensError, DeadlineError, OutOfMemoryError, OverloadError, RequestError
from convlens.explain.forward import Forward, OnStep
from convlens.protocol.params import field_prefix
from convlens.runtime.memory import free_gpu_cache, is_out_of_memory
from convlens.types import Floats, Neuron, Result, Step

_log = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")


def attempt(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | ConvLensError:
    """What the action returns, or as an error what it raises; the error holds on to nothing of the failed try."""
    outcome = _attempt(action, *args, **kwargs)
    if isinstance(outcome, OutOfMemoryError):
        free_gpu_cache()  # here, where the failed try's tensors are gone with its traceback
    return outcome


def _attempt(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | ConvLensError:
    try:
        return action(*args, **kwargs)
    except ConvLensError as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - the boundary: a fault in one row must not take its neighbours down
        if is_out_of_memory(error):
            return OutOfMemoryError("the device has not enough memory for this request; ask for less at a time")
        _log.exception("a request failed")
        return ConvLensError("internal error while answering this request; the server's log has the details")


_OF_TARGETS = ("target", "layer", "channel", "y", "x")
MakeForward = Callable[[Floats, OnStep], Forward]


class BatchExecutor:
    """One batch. Rows get their predictions, explanations and errors.

    First come the forward passes with everything light, then, one by one, jobs of many windows or samples, as far as
    there is time for them.
    """

    def __init__(
        self,
        make_forward: MakeForward,
        *,
        planner: AdmissionController,
        costs: CostModel,
        budget: TimeBudget,
        on_step: OnStep,
    ) -> None:
        self._make_forward = make_forward
        self._planner, self._costs, self._budget = planner, costs, budget
        self._on_step = on_step
        self._step = Step("")
        self._heavy: Row | None = None

    def through(self, rows: Sequence[Row]) -> None:
        """Answer all rows that have no error yet."""
        waiting: list[tuple[Forward, list[Row]]] = []
        for group in by_kind(row for row in rows if row.error is None):
            waiting += self._light(group)
        for forward, group in waiting:
            for call in heavy_calls(group):
                self._explain(forward, group, call)

    def _light(self, rows: list[Row]) -> list[tuple[Forward, list[Row]]]:
        """What is quick, for these rows together or, where that fails, for each alone; the forwards for what is not."""
        self._hear(Step("predictions"))
        forward = attempt(self._predict, rows)
        if isinstance(forward, ConvLensError):
            if len(rows) == 1:
                rows[0].error = forward
                return []
            return [one for row in rows for one in self._light([row])]
        for call in light_calls(rows):
            self._explain(forward, rows, call)
        forward.release()  # the recorded graph is large, and sweeps want memory
        return [(forward, rows)]

    def _predict(self, rows: list[Row]) -> Forward:
        """The forward pass of these rows, made, and their predictions; a row without finite scores gets its error."""
        started = time.perf_counter()
        forward = self._forward(rows)
        if rows[0].wants_gradient:
            forward.record()
        _ = forward.embedding_ND  # makes the forward now: where it fails, no row is to blame yet
        if not rows[0].wants_gradient:
            self._costs.learn_forward((time.perf_counter() - started) / len(rows))
        for n, row in enumerate(rows):
            row.runtime = forward.runtime
            found = attempt(top, forward.select([n]), row.request.params.topk)
            if isinstance(found, ConvLensError):
                row.error = found
            else:
                row.predictions = found
        return forward

    def _forward(self, rows: list[Row]) -> Forward:
        return self._make_forward(np.stack([row.x_CHW for row in rows]), self._hear)

    def _explain(self, forward: Forward, rows: list[Row], call: list[BatchEntry]) -> None:
        call = [share for share in call if self._in_time(rows[share.n], share)]
        if not call:
            return
        self._hear(Step(call[0].job.method))
        self._heavy = rows[call[0].n] if call[0].task.heavy else None
        key, started = self._planner.key(call[0].job), time.perf_counter()
        result = attempt(_call, forward, call)
        seconds, self._heavy = time.perf_counter() - started, None
        done = self._step.done / self._step.total if self._step.total else 1.0
        if not isinstance(result, ConvLensError) or isinstance(result, DeadlineError | OverloadError):
            self._costs.learn(key, done * sum(share.task.cost for share in call), seconds)
        if isinstance(result, ConvLensError):
            self._explain_alone(result, rows, call, seconds)
            return
        for position, share in enumerate(call):
            started = time.perf_counter()
            self._keep(forward, rows[share.n], share, result.row(position), seconds / len(call))
            drawn = time.perf_counter() - started
            rows[share.n].methods.append(self._report(share, seconds / len(call) + drawn, len(call)))

    def _explain_alone(self, failure: ConvLensError, rows: list[Row], call: list[BatchEntry], seconds: float) -> None:
        """What failed once more, each row in a forward pass of its own: smaller, and free of its neighbours' faults."""
        final = len(call) == 1 and isinstance(failure, RequestError | DeadlineError | OverloadError)
        if len(rows) == 1 or final:
            rows[call[0].n].error = failure
            rows[call[0].n].methods.append(self._report(call[0], seconds, 1))
            return
        for share in call:
            row = rows[share.n]
            forward = attempt(self._forward, [row])
            if isinstance(forward, ConvLensError):
                row.error = forward
            else:
                self._explain(forward, [row], [replace(share, n=0)])

    def _keep(self, forward: Forward, row: Row, share: BatchEntry, result: Result, seconds: float) -> None:
        found = attempt(explanation, row, share.job, result, forward.spec.labels, round(seconds * 1e3, 3))
        if isinstance(found, ConvLensError):
            row.error = found
        else:
            row.explanations[share.job.id] = found

    def _report(self, share: BatchEntry, seconds: float, rows: int) -> MethodRecord:
        sweeps = explain.get(share.job.method).needs == "scores"
        return MethodRecord(share.job.method, seconds, self._step.done // rows if sweeps else 0)

    # --- time -------------------------------------------------------------------------------------------------------

    def _in_time(self, row: Row, share: BatchEntry) -> bool:
        """Whether to begin with this; the row gets an error where there is no time for it."""
        if row.error is None and row.arrival.due is not None and not share.task.heavy:
            row.error = attempt(row.arrival.require, 0.0, now=time.perf_counter())
        elif row.error is None and share.task.heavy:
            row.error = attempt(self._budget.require, row.arrival, self._planner.job_seconds(share.job))
        return row.error is None

    def _hear(self, step: Step) -> None:
        """Tells the listener, and stops a sweep in its middle when its time is over."""
        self._step = step
        self._on_step(step)
        if self._heavy is not None and step.done < step.total:
            self._budget.require(self._heavy.arrival, 0.0)


def _call(forward: Forward, call: list[BatchEntry]) -> Result:
    """One call of a method for all rows that share it, each with the class it names, the predicted one, or a neuron."""
    selected, job = forward.select([share.n for share in call]), call[0].job
    neurons = [share.task.target for share in call if isinstance(share.task.target, Neuron)]
    if neurons:
        return _call_for_neurons(selected, job, neurons)
    best = selected.targets(None)
    named = [share.task.target for share in call]
    target_N = [target if isinstance(target, int) else int(best[n]) for n, target in enumerate(named)]
    with field_prefix(job.place):
        return explain.run(job.method, selected, target_N, job.options)


def _call_for_neurons(forward: Forward, job: MethodCall, neurons: Sequence[Neuron]) -> Result:
    try:
        return explain.run_neurons(job.method, forward, neurons, job.options)
    except ConvLensError as error:
        place = job.target_place if error.field in _OF_TARGETS else job.place
        if error.field == "target":
            error.field = place
        else:
            error.field = ".".join(part for part in (place, error.field) if part) or None
        raise
