"""An attribution as pictures: laid over what the model saw, and alone.

What became of a row, as the values of a reply, with the pictures that it asked for.
"""

from __future__ import annotations

import numpy as np

from convlens import explain, image, visualization
from convlens.engine.batch import Row
from convlens.engine.method_calls import MethodCall
from convlens.explain.forward import Forward
from convlens.explain.scores import scores_of
from convlens.types import Attribution, Bytes8, Explanation, Floats, Placement, Prediction, Result


def overlay(attribution: Attribution, view_HWC: Bytes8) -> Bytes8:
    """One attribution (of one row) over the picture it explains; (H, W, 3)."""
    signed = _drawing(attribution) == "signed"
    return visualization.overlay(view_HWC, pixel_map(attribution), signed=signed, smooth=_smooth(attribution))


def overlay_at_place(attribution: Attribution, picture_HWC: Bytes8, placement: Placement) -> Bytes8:
    """One attribution over the whole picture, of which the model saw a part; (H, W, 3) of the picture."""
    smooth_HW = visualization.smoothed(pixel_map(attribution), sigma=_smooth(attribution))
    placed_HW = visualization.place_in_image(smooth_HW[None], size=placement.size, box=placement.box)[0]
    return visualization.overlay(picture_HWC, placed_HW, signed=_drawing(attribution) == "signed")


def heatmap(attribution: Attribution) -> Bytes8:
    """One attribution (of one row) alone, in the colours of its kind; (H, W, 3)."""
    drawing = _drawing(attribution)
    if drawing == "gradient":
        return visualization.gradient_image(attribution.values_NCHW[0])
    map_HW = pixel_map(attribution)
    return visualization.diverging(map_HW) if drawing == "signed" else visualization.sequential(map_HW)


def pixel_map(attribution: Attribution) -> Floats:
    """(H, W): summed over channels where signs mean for and against, else the largest magnitude."""
    values_CHW = attribution.values_NCHW[0]
    if _drawing(attribution) == "signed":
        return np.asarray(visualization.signed_sum(values_CHW))
    return np.asarray(visualization.abs_max(values_CHW))


def _smooth(attribution: Attribution) -> float:
    """Gradients per channel are a scatter of single pixels, hard to see on a photograph unless slightly spread."""
    return 2.0 if attribution.values_NCHW.shape[1] > 1 else 0.0


def _drawing(attribution: Attribution) -> str:
    return explain.get(attribution.method).drawing


def top(forward: Forward, most: int) -> tuple[Prediction, ...]:
    """The first row's likeliest classes, likeliest first."""
    labels, logits_K = forward.spec.labels, forward.logits_NK[0]
    probability_K = scores_of(logits_K[None].astype(np.float64), "probability")[0]
    # A stable sort: equal logits come in the order of their class index.
    best = np.argsort(-logits_K, kind="stable")[:most]
    return tuple(Prediction(int(k), labels[k], float(probability_K[k]), float(logits_K[k])) for k in best)


def explanation(row: Row, job: MethodCall, result: Result, labels: tuple[str, ...], milliseconds: float) -> Explanation:
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
        image.encode_png(heatmap(result)) if "heatmap" in wanted else b"",
    )


def _overlay(row: Row, result: Attribution) -> Bytes8:
    if row.request.params.size == "model":
        return overlay(result, row.view_HWC)
    return overlay_at_place(result, np.asarray(row.request.picture), row.placement)
