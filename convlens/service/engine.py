"""A batch of requests in, as many replies or errors out. Knows no server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from convlens import explain, image
from convlens.errors import ConvLensError, OutOfMemoryError, RequestError
from convlens.explain.forward import ForwardPass, Scorer, scores_of
from convlens.gallery import Gallery
from convlens.models import Classifier, find_class
from convlens.service import draw
from convlens.service.batch import Row, Share, by_kind, shared_calls
from convlens.service.request import Job, Request, jobs
from convlens.types import Attribution, Explanation, Floats, Prediction, Reply, Result

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineOptions:
    """``default_methods`` answer a request that asks to be explained but names no method.

    ``max_cost`` bounds the work on one request, in forward passes; more is refused before it starts.
    """

    name: str = "convlens"
    version: str = "1.0"
    default_methods: tuple[str, ...] = ("saliency", "guided_backprop", "occlusion")
    max_cost: float = 2_000.0


def ignore(stage: str) -> None:
    """The listener that does not listen."""


class Engine:
    """Answers batches of requests with one model; safe to call from several threads.

    Rows that want a gradient go through one recorded forward together, the others through one without a graph, which is
    cheaper than dragging them through everybody's backward passes. Each ReLU rule then takes one backward for all rows
    that asked for it, each with its own target. A row that fails leaves its neighbours alone.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        gallery: Gallery | None = None,
        scorer: Scorer | None = None,
        options: EngineOptions | None = None,
    ) -> None:
        self.classifier = classifier
        self.gallery = gallery
        self.scorer = scorer
        self.options = options or EngineOptions()
        for name in self.options.default_methods:
            explain.get(name)
        if gallery is not None:
            gallery.require_weights(classifier.spec.weights_sha256)

    def run(
        self, requests: Sequence[Request], *, on_step: Callable[[str], None] = ignore
    ) -> list[Reply | ConvLensError]:
        """The answer to each request, in their order: a Reply, or the error that its row ran into.

        ``on_step`` is told each stage as it begins: "predictions", then the methods' names.
        """
        started = time.perf_counter()
        answers: dict[int, Reply | ConvLensError] = {}
        rows: dict[int, Row] = {}
        for n, request in enumerate(requests):
            try:
                rows[n] = self._prepare(request)
            except ConvLensError as error:
                answers[n] = error
        prepared = time.perf_counter()
        for group in by_kind(rows.values()):
            self._run_group(group, on_step)
        timing_ms = {"prepare": _ms(started, prepared), "explain": _ms(prepared, time.perf_counter())}
        for n, row in rows.items():
            answers[n] = row.error or self._reply(row, timing_ms)
        return [answers[n] for n in range(len(requests))]

    # --- one row in -------------------------------------------------------------------------------------------------

    def _prepare(self, request: Request) -> Row:
        spec = self.classifier.spec
        wanted = jobs(request.params, self.options.default_methods)
        self._check_cost(wanted)
        targets = [None if job.target is None else find_class(spec.labels, job.target) for job in wanted]
        prepared = image.prepare(request.picture, spec)
        row = Row(request, wanted, targets, prepared.x_CHW, prepared.view_HWC)
        if min(request.picture.size) < spec.crop:
            size = "×".join(map(str, request.picture.size))
            row.warnings.append(f"the picture is {size} pixels, smaller than the model's {spec.crop}: it was enlarged")
        return row

    def _check_cost(self, wanted: Sequence[Job]) -> None:
        cost = sum(explain.get(job.method).cost(job.options, self.classifier.spec.crop) for job in wanted)
        if cost > self.options.max_cost:
            raise RequestError(
                f"this request costs about {cost:.0f} forward passes and {self.options.max_cost:.0f} are allowed; "
                "use a larger stride, fewer samples or fewer methods",
                field="methods",
            )

    # --- a batch through --------------------------------------------------------------------------------------------

    def _run_group(self, rows: list[Row], on_step: Callable[[str], None]) -> None:
        on_step("predictions")
        x_NCHW = np.stack([row.x_CHW for row in rows])
        forward = ForwardPass(self.classifier, x_NCHW, scorer=self.scorer, gallery=self.gallery)
        if not _each(rows, lambda: self._predict(forward, rows), alone=len(rows) == 1):
            for row in rows if len(rows) > 1 else []:
                self._run_group([row], on_step)
            return
        for call in shared_calls(rows):
            on_step(call[0].job.method)
            self._explain(forward, rows, call)

    def _predict(self, forward: ForwardPass, rows: list[Row]) -> None:
        if rows[0].wants_gradient:
            forward.record()
        for n, row in enumerate(rows):
            one = forward.select([n])

            def predict(row: Row = row, one: ForwardPass = one) -> None:
                row.predictions = self._top(one.logits_NK[0], row.request.params.topk)

            _each([row], predict)

    def _top(self, logits_K: Floats, most: int) -> tuple[Prediction, ...]:
        labels = self.classifier.spec.labels
        probability_K = scores_of(logits_K[None].astype(np.float64), "probability")[0]
        # A stable sort: equal logits come in the order of their class index.
        best = np.argsort(-logits_K, kind="stable")[:most]
        return tuple(Prediction(int(k), labels[k], float(probability_K[k]), float(logits_K[k])) for k in best)

    def _explain(self, forward: ForwardPass, rows: list[Row], call: list[Share]) -> None:
        call = [share for share in call if rows[share.n].error is None]
        if not call:
            return
        started = time.perf_counter()
        results: list[Result] = []
        calls_rows = [rows[share.n] for share in call]
        if not _each(calls_rows, lambda: results.append(_call(forward, call)), alone=len(call) == 1):
            for share in call:
                self._explain(forward, rows, [share])
            return
        share_ms = _ms(started, time.perf_counter()) / len(call)
        for position, share in enumerate(call):
            row = rows[share.n]
            row.explanations[share.job.id] = self._explanation(row, share.job, results[0].row(position), share_ms)

    def _explanation(self, row: Row, job: Job, result: Result, milliseconds: float) -> Explanation:
        if not isinstance(result, Attribution):
            return Explanation(job.id, job.method, result, "", milliseconds)
        wanted = row.request.params.output
        return Explanation(
            job.id,
            job.method,
            result,
            self.classifier.spec.labels[int(result.target_N[0])],
            milliseconds,
            image.encode_png(draw.overlay(result, row.view_HWC)) if "overlay" in wanted else b"",
            image.encode_png(draw.heatmap(result)) if "heatmap" in wanted else b"",
        )

    # --- one row out ------------------------------------------------------------------------------------------------

    def _reply(self, row: Row, timing_ms: dict[str, float]) -> Reply:
        return Reply(
            model_name=self.options.name,
            model_version=self.options.version,
            weights_sha256=self.classifier.spec.weights_sha256,
            request_id=row.request.params.request_id,
            device=str(self.classifier.device),
            predictions=row.predictions,
            explanations=tuple(row.explanations[job.id] for job in row.jobs),
            warnings=tuple(row.warnings),
            timing_ms=timing_ms,
        )


def _call(forward: ForwardPass, call: list[Share]) -> Result:
    """One call of a method for all rows that share it, each with the class it names or the predicted one."""
    selected, job = forward.select([share.n for share in call]), call[0].job
    best = selected.targets(None)
    target_N = [best[i] if share.target is None else share.target for i, share in enumerate(call)]
    return explain.run(job.method, selected, target_N, job.options)


def _each(rows: list[Row], action: Callable[[], None], *, alone: bool = True) -> bool:
    """Run the action; True if it went well. Where it fails, ``alone`` gives the rows the error."""
    try:
        action()
        return True
    except ConvLensError as error:
        failure = error
    except torch.OutOfMemoryError:
        failure = OutOfMemoryError("the device has not enough memory for this request; use a smaller batch or picture")
    except Exception:  # noqa: BLE001 - the boundary: a fault in one row must not take its neighbours down
        _log.exception("a request failed")
        failure = ConvLensError("internal error while answering this request; the server's log has the details")
    if alone:
        for row in rows:
            row.error = failure
    return False


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1e3, 3)
