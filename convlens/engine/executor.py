"""A batch on its way through the model: rows share passes and calls, and a row that fails fails alone."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convlens import explain
from convlens.engine.admission import AdmissionController, TimeBudget
from convlens.engine.batch import (
    BatchEntry,
    MethodRecord,
    Row,
    by_gradient,
    evaluated_calls,
    heavy_calls,
    light_calls,
)
from convlens.engine.cost_model import CostModel
from convlens.engine.evaluation import EVALUATE, evaluate
from convlens.engine.method_calls import MethodCall
from convlens.engine.rendering import explanation, top_predictions
from convlens.errors import (
    ConvLensError,
    DeadlineError,
    OutOfMemoryError,
    OverloadError,
    RequestError,
    UnsupportedModelError,
)
from convlens.explain.forward import Forward, OnStep
from convlens.protocol.params import field_prefix
from convlens.runtime.memory import free_gpu_cache, is_out_of_memory
from convlens.types import Floats, Neuron, Result, Step
from convlens.utils.concurrency import concurrent_map

_log = logging.getLogger(__name__)
MakeForward = Callable[[Floats, OnStep], Forward]


@dataclass
class Isolation:
    """How a ``with isolate_errors()`` ended: the error inside it, None where there was none."""

    error: ConvLensError | None = None


@contextmanager
def isolate_errors() -> Iterator[Isolation]:
    """Keep whatever goes wrong inside as ``error``, so that one row's fault becomes no neighbour's.

    An error that is not ours is logged with its traceback and becomes one that tells the client nothing of it. The
    error that is kept holds nothing of the failed try.
    """
    isolation = Isolation()
    try:
        yield isolation
    except ConvLensError as error:
        isolation.error = error
        _let_go(error)
    except Exception as error:  # noqa: BLE001 - the boundary: a fault in one row must not take its neighbours down
        if is_out_of_memory(error):
            message = "the device has not enough memory for this request; ask for less at a time"
            isolation.error = OutOfMemoryError(message)
        else:
            _log.exception("a request failed")
            message = "internal error while answering this request; the server's log has the details"
            isolation.error = ConvLensError(message)
            isolation.error.detail = _in_words(error)
        _let_go(error)
    if isinstance(isolation.error, OutOfMemoryError):
        free_gpu_cache()


def _in_words(error: Exception) -> str:
    """``ValueError: bad size (in forward, net.py:12)``"""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    lines = str(error).strip().splitlines()
    said = f": {lines[0][:300]}" if lines else ""
    return f"{type(error).__name__}{said} (in {frame.name}, {Path(frame.filename).name}:{frame.lineno})"


def _let_go(error: Exception) -> None:
    # The interpreter keeps the traceback until the ``with`` has ended, and its frames the failed try's tensors. Without
    # clearing them there would be nothing for ``free_gpu_cache`` to give back.
    traceback.clear_frames(error.__traceback__)
    error.__cause__ = error.__context__ = error.__traceback__ = None


class BatchExecutor:
    """Runs one batch; its rows get their predictions, explanations and errors.

    Light work first: the forward passes with all calls that rows share, then, one by one and as far as there is time,
    the calls of many windows or samples and the evaluations of maps.
    """

    def __init__(
        self,
        make_forward: MakeForward,
        *,
        admission: AdmissionController,
        costs: CostModel,
        budget: TimeBudget,
        on_step: OnStep,
    ) -> None:
        self._make_forward = make_forward
        self._admission, self._costs, self._budget = admission, costs, budget
        self._on_step = on_step
        self._step = Step("")
        self._heavy: Row | None = None  # the row whose sweep, samples or evaluation are running

    def execute(self, rows: Sequence[Row]) -> None:
        """Answer all rows that have no error yet."""
        passed: list[tuple[Forward, list[Row]]] = []
        for group in by_gradient(row for row in rows if row.error is None):
            passed += self._light(group)
        for forward, group in passed:
            for entries in heavy_calls(group):
                self._explain(forward, group, entries)
            for entry in evaluated_calls(group):
                self._evaluate(forward, group[entry.n], entry)

    def _light(self, rows: list[Row]) -> list[tuple[Forward, list[Row]]]:
        """Predictions and light calls, for these rows together or, where their forward pass fails, for each alone.

        Returns the forward passes, for the heavy calls.
        """
        self._on_progress(Step("predictions"))
        with isolate_errors() as isolation:
            forward = self._predict(rows)
        if isolation.error is not None:
            if len(rows) == 1:
                rows[0].error = isolation.error
                return []
            return [passed for row in rows for passed in self._light([row])]
        for entries in light_calls(rows):
            self._explain(forward, rows, entries)
        forward.release()  # the recorded graph is large, and sweeps want memory
        return [(forward, rows)]

    def _predict(self, rows: list[Row]) -> Forward:
        """The forward pass of these rows, with their predictions; a row without finite scores gets its error."""
        started = time.perf_counter()
        forward = self._forward(rows)
        if rows[0].wants_gradient:
            # Before anything else is computed: predictions and gradients then share one pass. Where that is not
            # possible the methods say so themselves, and predictions need none.
            with suppress(UnsupportedModelError):
                forward.record()
        forward.compute()  # where it fails, no row is to blame yet
        if not rows[0].wants_gradient:
            self._costs.learn_forward((time.perf_counter() - started) / len(rows))
        for n, row in enumerate(rows):
            row.runtime = forward.runtime
            with isolate_errors() as isolation:
                row.predictions = top_predictions(forward.select([n]), row.request.params.topk)
            row.error = isolation.error
        return forward

    def _forward(self, rows: list[Row]) -> Forward:
        return self._make_forward(np.stack([row.x_CHW for row in rows]), self._on_progress)

    def _explain(self, forward: Forward, rows: list[Row], entries: list[BatchEntry]) -> None:
        """One shared call, for those of its rows that still have time."""
        entries = [entry for entry in entries if self._in_time(rows[entry.n], entry.call)]
        if not entries:
            return
        call = entries[0].call
        self._on_progress(Step(call.method.name))
        self._heavy = rows[entries[0].n] if call.heavy else None
        # The key now, not afterwards: the call's own timing may make another sweep backend the next choice.
        key, started = self._admission.key(call), time.perf_counter()
        with isolate_errors() as isolation:
            result = _run(forward, entries)
        error, seconds, self._heavy = isolation.error, time.perf_counter() - started, None
        if error is None or isinstance(error, DeadlineError | OverloadError):
            # What was stopped in its middle teaches as well, by the windows that it had done.
            done = self._step.done / self._step.total if self._step.total else 1.0
            self._costs.learn(key, done * sum(entry.call.cost for entry in entries), seconds)
        if error is not None:
            self._explain_alone(error, rows, entries, seconds)
            return

        def keep(position: int) -> None:
            entry = entries[position]
            self._keep(forward, rows[entry.n], entry.call, result.row(position), seconds / len(entries), len(entries))

        concurrent_map(keep, range(len(entries)))  # in threads: drawing and compressing a PNG releases the GIL

    def _explain_alone(self, error: ConvLensError, rows: list[Row], entries: list[BatchEntry], seconds: float) -> None:
        """A failed call again, each row in a forward pass of its own: smaller, and without its neighbours' faults."""
        # A single row that was refused, or ran out of time, would be again.
        final = len(entries) == 1 and isinstance(error, RequestError | DeadlineError | OverloadError)
        if len(rows) == 1 or final:
            row = rows[entries[0].n]
            row.fail(entries[0].call, error)
            row.methods.append(self._record(entries[0].call, seconds, 1, row.failures.get(entries[0].call.id)))
            return
        for entry in entries:
            row = rows[entry.n]
            with isolate_errors() as isolation:
                forward = self._forward([row])
            row.error = isolation.error
            if row.error is None:
                self._explain(forward, [row], [replace(entry, n=0)])

    def _evaluate(self, forward: Forward, row: Row, entry: BatchEntry) -> None:
        """The curves of one map. Where the model is the reason that there are none, the map stays without them."""
        call = entry.call
        if not self._has_time(row, self._admission.evaluation_seconds(call)):
            return
        self._heavy, started = row, time.perf_counter()
        with isolate_errors() as isolation:
            self._on_progress(Step(EVALUATE, 0, int(call.evaluation_cost)))
            evaluation = evaluate(forward.select([entry.n]), call, row.explanations[call.id].result)
        error, seconds, self._heavy = isolation.error, time.perf_counter() - started, None
        if error is None or isinstance(error, DeadlineError | OverloadError):
            done = self._step.done / self._step.total
            self._costs.learn(self._admission.evaluation_key, done * call.evaluation_cost, seconds)
        if error is None:
            row.explanations[call.id] = replace(row.explanations[call.id], evaluation=evaluation)
        else:
            row.fail_evaluation(call, error)
        row.methods.append(MethodRecord(EVALUATE, seconds, 0, row.unevaluated.get(call.id)))

    def _keep(self, forward: Forward, row: Row, call: MethodCall, result: Result, seconds: float, shared: int) -> None:
        """Draw a row's result; ``seconds`` is its part of the call that so many rows shared."""
        started = time.perf_counter()
        with isolate_errors() as isolation:
            row.explanations[call.id] = explanation(row, call, result, forward.spec, round(seconds * 1e3, 3))
        if isolation.error is not None:
            row.fail(call, isolation.error)
        ended = time.perf_counter()
        row.methods.append(self._record(call, seconds + ended - started, shared, row.failures.get(call.id)))

    def _record(self, call: MethodCall, seconds: float, shared: int, error: ConvLensError | None) -> MethodRecord:
        sweeps = call.method.needs == "scores"
        return MethodRecord(call.method.name, seconds, self._step.done // shared if sweeps else 0, error)

    # --- time -------------------------------------------------------------------------------------------------------

    def _in_time(self, row: Row, call: MethodCall) -> bool:
        """Whether to start this call; the row gets an error where there is no time for it."""
        if call.heavy:
            return self._has_time(row, self._admission.call_seconds(call))
        if row.error is None:
            with isolate_errors() as isolation:
                row.deadline.require(0.0)
            row.error = isolation.error
        return row.error is None

    def _has_time(self, row: Row, seconds: float) -> bool:
        """The same for so many seconds of heavy work."""
        if row.error is None:
            with isolate_errors() as isolation:
                self._budget.require(row.deadline, seconds)
            row.error = isolation.error
        return row.error is None

    def _on_progress(self, step: Step) -> None:
        """Pass the step on, and stop a sweep in its middle when its time is over."""
        self._step = step
        self._on_step(step)
        if self._heavy is not None and step.done < step.total:
            self._budget.require(self._heavy.deadline, 0.0)


def _run(forward: Forward, entries: list[BatchEntry]) -> Result:
    """One call of a method for all rows that share it: each for its own class, the predicted class, or its neuron."""
    selected, call = forward.select([entry.n for entry in entries]), entries[0].call
    targets = [entry.call.target for entry in entries]
    neurons = [target for target in targets if isinstance(target, Neuron)]
    if neurons:
        return _run_neurons(selected, call, neurons)
    predicted_N = selected.targets(None)
    target_N = [target if isinstance(target, int) else int(predicted_N[n]) for n, target in enumerate(targets)]
    with field_prefix(call.place):
        return call.method.explain(selected, target_N, call.options)


def _run_neurons(forward: Forward, call: MethodCall, neurons: Sequence[Neuron]) -> Result:
    try:
        return explain.run_neurons(call.method.name, forward, neurons, call.options)
    except ConvLensError as error:
        of_target = error.field in ("target", "layer", "channel", "y", "x")
        field = "" if error.field == "target" else error.field
        error.field = ".".join(part for part in (call.target_place if of_target else call.place, field) if part) or None
        raise
