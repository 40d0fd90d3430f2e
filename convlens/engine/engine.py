"""A batch of requests in, as many replies or errors out. Knows no server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from convlens import explain, image
from convlens.engine.admission import AdmissionController, TimeBudget
from convlens.engine.backend import Model, forward_of, sweeps_for
from convlens.engine.batch import OnRow, RequestRecord, Row, Task
from convlens.engine.cost_model import CostModel
from convlens.engine.deadline import Deadline, deadline_of
from convlens.engine.executor import BatchExecutor, attempt
from convlens.engine.method_calls import MethodCall, asked
from convlens.engine.options import EngineOptions
from convlens.errors import ConvLensError, GalleryError, RequestError
from convlens.explain.forward import Forward, OnStep
from convlens.gallery import Gallery
from convlens.instrument import find_layer
from convlens.models import Classifier, find_class
from convlens.protocol.params import Params, field_prefix
from convlens.protocol.requests import Request
from convlens.types import Floats, Neuron, Placement, Reply, no_op

if TYPE_CHECKING:
    from convlens.runtime.graph_set import GraphSet

__all__ = ["Engine", "EngineOptions"]


class Engine:
    """Answers batches of requests with one model, a network or exported graphs; safe to call from several threads.

    ``graphs`` beside a network make its occlusion sweeps faster.
    Rows that want a gradient go through one recorded forward together, the others through one without a graph, which is
    cheaper than dragging them through everybody's backward passes. Each ReLU rule then takes one backward for all rows
    that asked for it, each with its own target. A row that fails leaves its neighbours alone.
    """

    def __init__(
        self,
        model: Model,
        *,
        gallery: Gallery | None = None,
        graphs: GraphSet | None = None,
        options: EngineOptions | None = None,
    ) -> None:
        self.model = model
        self.gallery = gallery
        self.sweeps = sweeps_for(model, graphs)
        self.options = options or EngineOptions()
        self.costs = CostModel()
        self._planner = AdmissionController(
            self.options, model.spec.crop, self.costs, calibrate=self.calibrate, sweeps=lambda: self.sweeps
        )
        for name in self.options.default_methods:
            if explain.get(name).needs == "embedding" and gallery is None:
                raise GalleryError(f"{name} is a default method, but there is no gallery; give one or leave it out")
        if gallery is not None:
            gallery.require_weights(model.spec.weights_sha256)

    def run(
        self, requests: Sequence[Request], *, on_step: OnStep = no_op, on_row: OnRow = no_op
    ) -> list[Reply | ConvLensError]:
        """The answer to each request, in their order: a Reply, or the error that its row ran into.

        Nothing is answered before the whole batch is; so rows are let in only as far as the batch stays within
        ``max_seconds``, cheap ones first. ``on_step`` is told each stage as it begins, "predictions", then the methods'
        names, and in sweeps how many windows are done; ``on_row`` what became of each request, at the end.
        """
        started, clock = time.perf_counter(), time.time()
        budget = TimeBudget(self.options.max_seconds, started=started)
        arrivals = [deadline_of(request, started=started, clock=clock) for request in requests]
        timed = self.options.max_seconds is not None or any(arrival.due is not None for arrival in arrivals)
        prepared = [attempt(self._prepare, *given, timed) for given in zip(requests, arrivals, strict=True)]
        rows = [row for row in prepared if isinstance(row, Row)]
        budget.admit(rows)
        explaining = time.perf_counter()
        BatchExecutor(self._forward, planner=self._planner, costs=self.costs, budget=budget, on_step=on_step).through(
            rows
        )
        ended = time.perf_counter()
        timing_ms = {"prepare": _ms(started, explaining), "explain": _ms(explaining, ended)}
        answers = [(row.error or self._reply(row, timing_ms)) if isinstance(row, Row) else row for row in prepared]
        for request, arrival, row, answer in zip(requests, arrivals, prepared, answers, strict=True):
            methods = tuple(row.methods) if isinstance(row, Row) else ()
            error = answer if isinstance(answer, ConvLensError) else None
            on_row(RequestRecord(request.params.request_id, methods, arrival.waited_s, ended - started, error))
        return answers

    def calibrate(self) -> None:
        """Measure what a forward pass takes, by a few of them: about a tenth of a second.

        To be called at start-up; otherwise the first request does that has a limit of time. ModelError where the model
        cannot answer.
        """
        x_NCHW = np.zeros((1, 3, self.model.spec.crop, self.model.spec.crop), np.float32)
        self.costs.calibrate(lambda: self._forward(x_NCHW, no_op).embedding_ND)

    def estimate(self, params: Params) -> float:
        """Seconds that answering would take on an idle worker, for a picture of the model's size.

        RequestError for what this engine does not answer.
        """
        jobs = [job for job, _ in asked(params, self.options, self.model.spec.crop)[0]]
        return self._planner.seconds(jobs, params, self.model.spec.crop**2)

    def _forward(self, x_NCHW: Floats, on_step: OnStep) -> Forward:
        return forward_of(self.model, x_NCHW, sweeps=self.sweeps, gallery=self.gallery, on_step=on_step)

    # --- one row in -------------------------------------------------------------------------------------------------

    def _prepare(self, request: Request, arrival: Deadline, timed: bool) -> Row:
        spec = self.model.spec
        arrival.require(0.0, now=time.perf_counter())
        wanted, warnings = asked(request.params, self.options, spec.crop)
        tasks = [Task(job, self._target(job), cost) for job, cost in wanted]
        self._planner.require_cost(tasks)
        seconds = self._planner.require_seconds(request, arrival, [task.job for task in tasks]) if timed else 0.0
        prepared = image.prepare(request.picture, spec)
        placement = Placement(request.picture.size, prepared.box)
        row = Row(request, arrival, tasks, seconds, prepared.x_CHW, prepared.view_HWC, placement)
        row.warnings += [*([arrival.warning] if arrival.warning else []), *warnings]
        if min(request.picture.size) < spec.crop:
            size = "×".join(map(str, request.picture.size))
            row.warnings.append(f"the picture is {size} pixels, smaller than the model's {spec.crop}: it was enlarged")
        return row

    def _target(self, job: MethodCall) -> int | Neuron | None:
        if isinstance(job.target, Neuron):
            if explain.get(job.method).needs == "embedding":  # neighbours are about no target at all
                return None
            self._require_neuron(job, job.target)
            return job.target
        with field_prefix(job.target_place):
            return None if job.target is None else find_class(self.model.spec.labels, job.target)

    def _require_neuron(self, job: MethodCall, neuron: Neuron) -> None:
        """What can be told before anything runs."""
        try:
            explain.require_neurons(job.method)
        except RequestError as error:
            error.field = job.target_place
            raise
        if isinstance(self.model, Classifier):
            with field_prefix(job.target_place):
                find_layer(self.model.module, neuron.layer)

    # --- one row out ------------------------------------------------------------------------------------------------

    def _reply(self, row: Row, timing_ms: dict[str, float]) -> Reply:
        return Reply(
            model_name=self.options.name,
            model_version=self.options.version,
            weights_sha256=self.model.spec.weights_sha256,
            request_id=row.request.params.request_id,
            device=str(self.model.device),
            runtime=row.runtime,
            predictions=row.predictions,
            explanations=tuple(row.explanations[task.job.id] for task in row.tasks),
            warnings=tuple(row.warnings),
            timing_ms=timing_ms,
            placement=row.placement,
        )


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1e3, 3)
