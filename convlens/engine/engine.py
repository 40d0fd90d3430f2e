"""A batch of requests in, as many replies or errors out; knows no server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from convlens import explain, image
from convlens.engine.admission import AdmissionController, TimeBudget
from convlens.engine.backend import EngineOptions, Model, forward_of, sweeps_for, warm_up
from convlens.engine.batch import OnRow, RequestRecord, Row
from convlens.engine.cost_model import CostModel
from convlens.engine.evaluation import with_evaluation
from convlens.engine.executor import BatchExecutor, isolate_errors
from convlens.engine.method_calls import MethodCall, entry_calls, with_target
from convlens.errors import ConvLensError, GalleryError
from convlens.explain import GraphModel
from convlens.explain.forward import Forward, OnStep
from convlens.gallery import Gallery
from convlens.instrument import arithmetic
from convlens.models import Classifier
from convlens.protocol.deadline import Deadline, deadline_of
from convlens.protocol.params import Params
from convlens.protocol.requests import Request
from convlens.types import Box, Floats, ModelSpec, Placement, Reply, no_op
from convlens.utils.concurrency import concurrent_map

if TYPE_CHECKING:
    from convlens.runtime.graph_set import GraphSet

__all__ = ["Engine", "EngineOptions"]


@dataclass(frozen=True)
class _Checked:
    """A request that nothing speaks against, before its image is resized."""

    request: Request
    deadline: Deadline
    calls: list[MethodCall]
    warnings: list[str]
    seconds: float


class Engine:
    """Answers batches of requests with one model, a network or exported graphs; safe to call from several threads.

    ``graphs`` beside a network make its occlusion sweeps faster. Raises RequestError for default methods that there are
    not, GalleryError for a gallery of other weights, or none where a default method needs one.
    """

    def __init__(
        self,
        model: Model,
        *,
        gallery: Gallery | None = None,
        graphs: GraphSet | None = None,
        options: EngineOptions | None = None,
    ) -> None:
        options = options or EngineOptions()
        self.options = replace(options, precision=options.precision or model.precision)
        # Graphs were opened in the precision that they keep.
        self.model = model if isinstance(model, GraphModel) else replace(model, precision=self.options.precision)
        self.gallery = gallery
        self.sweeps = sweeps_for(self.model, graphs)
        if isinstance(self.model, Classifier) and self.model.graphs is None and self.model.device.type == "cpu":
            self.model = replace(self.model, graphs=graphs)  # masked images and evaluations run on them too
        self._costs = CostModel()
        self._admission = AdmissionController(
            self.options, model.spec.input_size, self._costs, calibrate=self.calibrate, sweeps=lambda: self.sweeps
        )
        for name in self.options.default_methods:
            if explain.get(name).needs == "embedding" and gallery is None:
                raise GalleryError(f"{name} is a default method, but there is no gallery; give one or leave it out")
        if gallery is not None:
            gallery.require_weights(model.spec.weights_sha256)

    def run(
        self,
        requests: Sequence[Request],
        *,
        started: float | None = None,
        on_step: OnStep = no_op,
        on_row: OnRow = no_op,
    ) -> list[Reply | ConvLensError]:
        """The answer to each request, in their order: a Reply, or the error that its row ran into.

        Nothing is answered before the whole batch is; so rows are let in only as far as the batch stays within
        ``max_seconds``, cheap ones first. A row that fails leaves its neighbours alone, and a method that the model
        cannot do leaves the row's others: a warning in the reply says why. ``started`` is when the work on the batch
        began by time.perf_counter(), where that was before this call: the time of reading counts. Calls ``on_step`` as
        each stage begins ("predictions", then the methods' names) and in sweeps after each batch of windows; calls
        ``on_row`` once for each request, at the end.
        """
        # Rows that want a gradient share one recorded forward pass, the others one without a graph: cheaper than to
        # drag them through everybody's backward passes. Each ReLU rule then takes one backward pass for all its rows.
        began, clock = time.perf_counter(), time.time()
        started = began if started is None else started
        budget = TimeBudget(self.options.max_seconds, started=started)
        deadlines = [_deadline(request, began, clock) for request in requests]
        timed = self.options.max_seconds is not None or any(deadline.due is not None for deadline in deadlines)
        checked: list[_Checked | ConvLensError] = []
        for request, deadline in zip(requests, deadlines, strict=True):
            with isolate_errors() as isolation:
                accepted = self._check(request, deadline, timed=timed)
            checked.append(isolation.error or accepted)
        prepared = concurrent_map(self._prepare, checked)
        rows = [row for row in prepared if isinstance(row, Row)]
        budget.admit(rows)
        explaining = time.perf_counter()
        BatchExecutor(
            self._forward, admission=self._admission, costs=self._costs, budget=budget, on_step=on_step
        ).execute(rows)
        ended = time.perf_counter()
        timing_ms = {"prepare": _ms(began, explaining), "explain": _ms(explaining, ended)}
        for item in prepared:
            self._show_details(item)
        answers = [
            (row.outcome_error or self._reply(row, timing_ms)) if isinstance(row, Row) else row for row in prepared
        ]
        for request, deadline, item, answer in zip(requests, deadlines, prepared, answers, strict=True):
            methods = tuple(item.methods) if isinstance(item, Row) else ()
            error = answer if isinstance(answer, ConvLensError) else None
            on_row(RequestRecord(request.params.request_id, methods, deadline.waited_s, ended - started, error))
        return answers

    def warm_up(self, batch_size: int) -> None:
        """Run what is slow the first time, at every size that batches up to this one will have on a GPU.

        Batches are padded there to 1, 2, 4, … rows, so that a size met for the first time costs nobody seconds.
        """
        with arithmetic(self.model.precision, self.model.device):
            warm_up(self.model, self.sweeps, batch_size)

    def calibrate(self) -> None:
        """Measure what a forward pass takes, by a few of them: about a tenth of a second.

        Call it at start-up; otherwise the first request with a limit of time does. ModelError where the model cannot
        answer.
        """
        self._costs.calibrate(lambda: self._forward(self._blank(), no_op).embedding_ND)

    def estimate(self, params: Params) -> float:
        """Seconds that answering would take on an idle worker, for an image of the model's size.

        RequestError for what this engine does not answer.
        """
        height, width = self.model.spec.input_size
        calls, _ = self._calls(params)
        return self._admission.seconds(calls, params, height * width)

    def _blank(self) -> Floats:
        """One mean-grey image (1, C, H, W): what a pass takes does not depend on the pixels."""
        spec = self.model.spec
        return np.zeros((1, spec.channels, *spec.input_size), np.float32)

    def _forward(self, x_NCHW: Floats, on_step: OnStep) -> Forward:
        return forward_of(self.model, x_NCHW, sweeps=self.sweeps, gallery=self.gallery, on_step=on_step)

    def _calls(self, params: Params) -> tuple[list[MethodCall], list[str]]:
        """What is to be computed and evaluated, with costs, and warnings."""
        spec = self.model.spec
        calls, warnings = entry_calls(params, self.options, spec.input_size)
        calls, unevaluated = with_evaluation(calls, params, spec, entry=self.options.sweeps_at)
        return calls, warnings + unevaluated

    def _check(self, request: Request, deadline: Deadline, *, timed: bool) -> _Checked:
        """Refuses all that can be refused before the image is touched and the model runs."""
        deadline.require(0.0)
        calls, warnings = self._calls(request.params)
        calls = [with_target(call, self.model) for call in calls]
        self._admission.require_cost(calls)
        seconds = self._admission.require_seconds(request, deadline, calls) if timed else 0.0
        return _Checked(request, deadline, calls, warnings, seconds)

    def _prepare(self, checked: _Checked | ConvLensError) -> Row | ConvLensError:
        """One row in; called in several threads, for resizing an image takes milliseconds outside the GIL."""
        if isinstance(checked, ConvLensError):
            return checked
        with isolate_errors() as isolation:
            row = self._row(checked)
        return isolation.error or row

    def _row(self, checked: _Checked) -> Row:
        spec, original = self.model.spec, checked.request.image
        prepared = image.prepare(original, spec)
        placement = Placement(original.size, prepared.box)
        row = Row(
            checked.request,
            checked.deadline,
            checked.calls,
            checked.seconds,
            prepared.x_CHW,
            prepared.display_HWC,
            placement,
        )
        row.warnings += [
            *self.model.spec.warnings,
            *([checked.deadline.warning] if checked.deadline.warning else []),
            *checked.warnings,
        ]
        if warning := _enlarged(original.size, prepared.box, spec):
            row.warnings.append(warning)
        return row

    def _show_details(self, item: Row | ConvLensError) -> None:
        """Put what happened in place of where it can be read."""
        if not self.options.shows_details:
            return
        errors = (item.error, *item.failures.values(), *item.unevaluated.values()) if isinstance(item, Row) else (item,)
        for error in errors:
            if error is not None and error.detail:
                error.message = f"internal error: {error.detail}"

    def _reply(self, row: Row, timing_ms: dict[str, float]) -> Reply:
        """One row out."""
        return Reply(
            model_name=self.options.name,
            model_version=self.options.version,
            weights_sha256=self.model.spec.weights_sha256,
            request_id=row.request.params.request_id,
            device=str(self.model.device),
            runtime=row.runtime,
            activation=self.model.spec.activation,
            predictions=row.predictions,
            explanations=tuple(row.explanations[call.id] for call in row.calls if call.id not in row.failures),
            warnings=(*row.warnings, *row.failure_warnings),
            timing_ms=timing_ms,
            placement=row.placement,
        )


def _deadline(request: Request, now: float, clock: float) -> Deadline:
    """The deadline of a request whose reading began at ``request.arrived``, else now, by two clocks."""
    arrived = now if request.arrived is None else request.arrived
    return deadline_of(request.params, request.sent_at, started=arrived, clock=clock - (now - arrived))


def _enlarged(size: tuple[int, int], box: Box, spec: ModelSpec) -> str:
    """A warning where the image has fewer pixels than the network sees of it."""
    height, width = spec.input_size
    # Within a border the image may be short of one side and still be reduced.
    across, down = (box[2] - box[0], box[3] - box[1]) if spec.crop_mode == "border" else size
    if across >= width and down >= height:
        return ""
    own = str(height) if height == width else f"{width}×{height}"
    return f"the picture is {'×'.join(map(str, size))} pixels, smaller than the model's {own}: it was enlarged"


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1e3, 3)
