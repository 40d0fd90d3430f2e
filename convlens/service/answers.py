"""What became of a row, as the values of a reply, with the pictures that it asked for."""

from __future__ import annotations

import numpy as np

from convlens import image
from convlens.explain.base import Forward
from convlens.explain.scores import scores_of
from convlens.service import draw
from convlens.service.batch import Row
from convlens.service.request import Job
from convlens.types import Attribution, Bytes8, Explanation, Prediction, Result


def top(forward: Forward, most: int) -> tuple[Prediction, ...]:
    """The first row's likeliest classes, likeliest first."""
    labels, logits_K = forward.spec.labels, forward.logits_NK[0]
    probability_K = scores_of(logits_K[None].astype(np.float64), "probability")[0]
    # A stable sort: equal logits come in the order of their class index.
    best = np.argsort(-logits_K, kind="stable")[:most]
    return tuple(Prediction(int(k), labels[k], float(probability_K[k]), float(logits_K[k])) for k in best)


def explanation(row: Row, job: Job, result: Result, labels: tuple[str, ...], milliseconds: float) -> Explanation:
    """The result of this row alone, drawn."""
    if not isinstance(result, Attribution):
        return Explanation(job.id, job.method, result, "", milliseconds)
    wanted = row.request.params.output
    return Explanation(
        job.id,
        job.method,
        result,
        str(result.neurons_N[0]) if result.neurons_N else labels[int(result.target_N[0])],
        milliseconds,
        image.encode_png(_overlay(row, result)) if "overlay" in wanted else b"",
        image.encode_png(draw.heatmap(result)) if "heatmap" in wanted else b"",
    )


def _overlay(row: Row, result: Attribution) -> Bytes8:
    if row.request.params.size == "model":
        return draw.overlay(result, row.view_HWC)
    return draw.overlay_at_place(result, np.asarray(row.request.picture), row.placement)
