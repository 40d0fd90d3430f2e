"""A batch of requests in, as many replies or errors out. Knows no server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np
import torch

from convlens import explain, image
from convlens.errors import ConvLensError, GalleryError, OutOfMemoryError, RequestError
from convlens.explain.base import Forward, OnStep, ignore
from convlens.explain.scores import scores_of
from convlens.gallery import Gallery
from convlens.models import find_class
from convlens.service import draw
from convlens.service.batch import Row, Share, by_kind, shared_calls
from convlens.service.model import Model, forward_of, sweeps_for
from convlens.service.request import Job, Request, at, jobs
from convlens.types import Attribution, Bytes8, Explanation, Placement, Prediction, Reply, Result, Step

if TYPE_CHECKING:
    from convlens.runtime.graphs import Graphs

_log = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class EngineOptions:
    """``default_methods`` answer a request that asks to be explained but names no method.

    ``max_cost`` bounds the work on one request, in forward passes; more is refused before it starts.
    """

    name: str = "convlens"
    version: str = "1.0"
    default_methods: tuple[str, ...] = ("saliency", "guided_backprop", "occlusion")
    max_cost: float = 2_000.0


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
        graphs: Graphs | None = None,
        options: EngineOptions | None = None,
    ) -> None:
        self.model = model
        self.gallery = gallery
        self.sweeps = sweeps_for(model, graphs)
        self.options = options or EngineOptions()
        for name in self.options.default_methods:
            if explain.get(name).needs == "embedding" and gallery is None:
                raise GalleryError(f"{name} is a default method, but there is no gallery; give one or leave it out")
        if gallery is not None:
            gallery.require_weights(model.spec.weights_sha256)

    def run(self, requests: Sequence[Request], *, on_step: OnStep = ignore) -> list[Reply | ConvLensError]:
        """The answer to each request, in their order: a Reply, or the error that its row ran into.

        ``on_step`` is told each stage as it begins, "predictions", then the methods' names, and in sweeps how many
        windows are done.
        """
        started = time.perf_counter()
        answers: dict[int, Reply | ConvLensError] = {}
        rows: dict[int, Row] = {}
        for n, request in enumerate(requests):
            row = _attempt(self._prepare, request)
            if isinstance(row, ConvLensError):
                answers[n] = row
            else:
                rows[n] = row
        prepared = time.perf_counter()
        for group in by_kind(rows.values()):
            self._run_group(group, on_step)
        timing_ms = {"prepare": _ms(started, prepared), "explain": _ms(prepared, time.perf_counter())}
        for n, row in rows.items():
            answers[n] = row.error or self._reply(row, timing_ms)
        return [answers[n] for n in range(len(requests))]

    # --- one row in -------------------------------------------------------------------------------------------------

    def _prepare(self, request: Request) -> Row:
        spec = self.model.spec
        wanted = jobs(request.params, self.options.default_methods)
        self._check_cost(wanted)
        targets = [self._target(job) for job in wanted]
        prepared = image.prepare(request.picture, spec)
        placement = Placement(request.picture.size, prepared.box)
        row = Row(request, wanted, targets, prepared.x_CHW, prepared.view_HWC, placement)
        if min(request.picture.size) < spec.crop:
            size = "×".join(map(str, request.picture.size))
            row.warnings.append(f"the picture is {size} pixels, smaller than the model's {spec.crop}: it was enlarged")
        return row

    def _target(self, job: Job) -> int | None:
        with at(job.target_place):
            return None if job.target is None else find_class(self.model.spec.labels, job.target)

    def _check_cost(self, wanted: Sequence[Job]) -> None:
        cost = 0.0
        for job in wanted:
            with at(job.place):
                cost += explain.get(job.method).cost(job.options, self.model.spec.crop)
        if cost > self.options.max_cost:
            raise RequestError(
                f"this request costs about {cost:.0f} forward passes and {self.options.max_cost:.0f} are allowed; "
                "use a larger stride, fewer samples or fewer methods",
                field="methods",
            )

    # --- a batch through --------------------------------------------------------------------------------------------

    def _run_group(self, rows: list[Row], on_step: OnStep) -> None:
        on_step(Step("predictions"))
        forward = _attempt(self._predict, rows, on_step)
        if isinstance(forward, ConvLensError):
            self._run_alone(forward, rows, on_step)
            return
        for call in shared_calls(rows):
            on_step(Step(call[0].job.method))
            self._explain(forward, rows, call)

    def _run_alone(self, failure: ConvLensError, rows: list[Row], on_step: OnStep) -> None:
        if len(rows) == 1:
            rows[0].error = failure
            return
        for row in rows:
            self._run_group([row], on_step)

    def _forward(self, rows: list[Row], on_step: OnStep = ignore) -> Forward:
        x_NCHW = np.stack([row.x_CHW for row in rows])
        return forward_of(self.model, x_NCHW, sweeps=self.sweeps, gallery=self.gallery, on_step=on_step)

    def _predict(self, rows: list[Row], on_step: OnStep) -> Forward:
        """The forward pass of these rows, made, and their predictions; a row without finite scores gets its error."""
        forward = self._forward(rows, on_step)
        if rows[0].wants_gradient:
            forward.record()
        _ = forward.embedding_ND  # makes the forward now: where it fails, no row is to blame yet
        for n, row in enumerate(rows):
            row.runtime = forward.runtime
            top = _attempt(self._top, forward.select([n]), row.request.params.topk)
            if isinstance(top, ConvLensError):
                row.error = top
            else:
                row.predictions = top
        return forward

    def _top(self, forward: Forward, most: int) -> tuple[Prediction, ...]:
        labels, logits_K = self.model.spec.labels, forward.logits_NK[0]
        probability_K = scores_of(logits_K[None].astype(np.float64), "probability")[0]
        # A stable sort: equal logits come in the order of their class index.
        best = np.argsort(-logits_K, kind="stable")[:most]
        return tuple(Prediction(int(k), labels[k], float(probability_K[k]), float(logits_K[k])) for k in best)

    def _explain(self, forward: Forward, rows: list[Row], call: list[Share]) -> None:
        call = [share for share in call if rows[share.n].error is None]
        if not call:
            return
        started = time.perf_counter()
        result = _attempt(_call, forward, call)
        if isinstance(result, ConvLensError):
            self._explain_alone(result, rows, call)
            return
        share_ms = _ms(started, time.perf_counter()) / len(call)
        for position, share in enumerate(call):
            self._keep(rows[share.n], share.job, result.row(position), share_ms)

    def _explain_alone(self, failure: ConvLensError, rows: list[Row], call: list[Share]) -> None:
        """What failed once more, each row in a forward pass of its own: smaller, and free of its neighbours' faults."""
        if len(rows) == 1 or (len(call) == 1 and isinstance(failure, RequestError)):
            rows[call[0].n].error = failure
            return
        for share in call:
            row = rows[share.n]
            forward = _attempt(self._forward, [row])
            if isinstance(forward, ConvLensError):
                row.error = forward
            else:
                self._explain(forward, [row], [replace(share, n=0)])

    def _keep(self, row: Row, job: Job, result: Result, milliseconds: float) -> None:
        explanation = _attempt(self._explanation, row, job, result, milliseconds)
        if isinstance(explanation, ConvLensError):
            row.error = explanation
        else:
            row.explanations[job.id] = explanation

    def _explanation(self, row: Row, job: Job, result: Result, milliseconds: float) -> Explanation:
        if not isinstance(result, Attribution):
            return Explanation(job.id, job.method, result, "", milliseconds)
        wanted = row.request.params.output
        return Explanation(
            job.id,
            job.method,
            result,
            self.model.spec.labels[int(result.target_N[0])],
            milliseconds,
            image.encode_png(self._overlay(row, result)) if "overlay" in wanted else b"",
            image.encode_png(draw.heatmap(result)) if "heatmap" in wanted else b"",
        )

    def _overlay(self, row: Row, result: Attribution) -> Bytes8:
        if row.request.params.size == "model":
            return draw.overlay(result, row.view_HWC)
        return draw.overlay_at_place(result, np.asarray(row.request.picture), row.placement)

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
            explanations=tuple(row.explanations[job.id] for job in row.jobs),
            warnings=tuple(row.warnings),
            timing_ms=timing_ms,
            placement=row.placement,
        )


def _call(forward: Forward, call: list[Share]) -> Result:
    """One call of a method for all rows that share it, each with the class it names or the predicted one."""
    selected, job = forward.select([share.n for share in call]), call[0].job
    best = selected.targets(None)
    target_N = [best[i] if share.target is None else share.target for i, share in enumerate(call)]
    with at(job.place):
        return explain.run(job.method, selected, target_N, job.options)


def _attempt(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | ConvLensError:
    """What the action returns, or as an error what it raises."""
    try:
        return action(*args, **kwargs)
    except ConvLensError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the boundary: a fault in one row must not take its neighbours down
        if _out_of_memory(error):
            return OutOfMemoryError("the device has not enough memory for this request; ask for less at a time")
        _log.exception("a request failed")
        return ConvLensError("internal error while answering this request; the server's log has the details")


def _out_of_memory(error: Exception) -> bool:
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1e3, 3)
