"""Results of the engine as a reply holds them: top classes, and attributions drawn over the image or alone."""

from __future__ import annotations

import numpy as np

from convlens import image, visualization
from convlens.engine.batch import Row
from convlens.engine.method_calls import MethodCall
from convlens.explain.forward import Forward
from convlens.explain.registry import Drawing
from convlens.explain.scores import scores_of
from convlens.types import Attribution, Bytes8, Explanation, Floats, ModelSpec, Prediction, Result


def top_predictions(forward: Forward, count: int) -> tuple[Prediction, ...]:
    """The first row's most probable classes, most probable first; none of a network without classes."""
    if not forward.spec.classes:
        return ()
    labels, logits_K = forward.spec.labels, forward.logits_NK[0]
    # In float64: the probabilities of all classes then add up to 1 within 1e-12.
    probability_K = scores_of(logits_K[None].astype(np.float64), "probability", forward.spec.activation)[0]
    # A stable sort: equal logits come in the order of their class index, so the first is the one argmax explains.
    best = np.argsort(-logits_K, kind="stable")[:count]
    return tuple(Prediction(int(k), labels[k], float(probability_K[k]), float(logits_K[k])) for k in best)


def explanation(row: Row, call: MethodCall, result: Result, spec: ModelSpec, milliseconds: float) -> Explanation:
    """The result of this row alone, with the drawings that the request asks for, as PNG."""
    if not isinstance(result, Attribution):
        return Explanation(call.id, call.method.name, result, "", milliseconds)
    output, drawing = row.request.params.output, call.method.drawing
    return Explanation(
        call.id,
        call.method.name,
        result,
        _target_label(result, spec.labels),
        milliseconds,
        image.encode_png(_overlay(row, result, drawing, spec)) if "overlay" in output else b"",
        image.encode_png(_heatmap(result, drawing)) if "heatmap" in output else b"",
    )


def _target_label(result: Attribution, labels: tuple[str, ...]) -> str:
    if result.neurons_N:
        return str(result.neurons_N[0])
    return labels[int(result.target_N[0])] if labels else "similarity"


def _overlay(row: Row, attribution: Attribution, drawing: Drawing, spec: ModelSpec) -> Bytes8:
    """(H, W, 3): over what the model saw, or at its place in the whole image, of which the model saw a part."""
    map_HW, signed = _pixel_map(attribution, drawing), drawing == "signed"
    # Gradients per channel are a scatter of single pixels, hard to see on a photograph unless slightly spread.
    sigma = 2.0 if attribution.values_NCHW.shape[1] > 1 else 0.0
    if row.request.params.size == "model":
        return visualization.overlay(row.view_HWC, map_HW, signed=signed, smooth=sigma)
    # Smoothed first: sigma is in pixels of the model's grid.
    smooth_HW = visualization.smoothed(map_HW, sigma=sigma)
    placed_HW = visualization.place_in_image(smooth_HW[None], size=row.placement.size, box=row.placement.box)[0]
    return visualization.overlay(image.display_image(row.request.image, spec), placed_HW, signed=signed)


def _heatmap(attribution: Attribution, drawing: Drawing) -> Bytes8:
    """The attribution alone, in the colours of its kind; (H, W, 3) of the model's grid."""
    if drawing == "gradient":
        return visualization.draw_gradient(attribution.values_NCHW[0])
    map_HW = _pixel_map(attribution, drawing)
    return visualization.diverging(map_HW) if drawing == "signed" else visualization.sequential(map_HW)


def _pixel_map(attribution: Attribution, drawing: Drawing) -> Floats:
    """(H, W): summed over channels where signs mean for and against, else the largest magnitude."""
    reduce = visualization.signed_sum if drawing == "signed" else visualization.abs_max
    return np.asarray(reduce(attribution.values_NCHW[0]))
