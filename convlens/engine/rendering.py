"""Results of the engine as a reply holds them: top classes, and attributions drawn over the image or alone."""

from __future__ import annotations

import numpy as np

from convlens import image, visualization
from convlens.engine.batch import Row
from convlens.engine.method_calls import MethodCall
from convlens.explain.forward import Forward
from convlens.explain.registry import Method
from convlens.explain.scores import scores_of
from convlens.types import Attribution, Bytes8, Explanation, Floats, ModelSpec, Prediction, Result
from convlens.visualization.colourbar import BarKind, ColourScale, LaidOver
from convlens.visualization.overlays import gradient_limit, overlay_limit

_PIXELS_SIGMA, _SHARES_SIGMA = 2.0, 3.0  # pixels of the model's grid


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
    output = row.request.params.output
    return Explanation(
        call.id,
        call.method.name,
        result,
        _target_label(result, spec.labels),
        milliseconds,
        image.encode_png(_overlay(row, result, call.method, spec)) if "overlay" in output else b"",
        image.encode_png(_heatmap(result, call.method)) if "heatmap" in output else b"",
    )


def _target_label(result: Attribution, labels: tuple[str, ...]) -> str:
    if result.neurons_N:
        return str(result.neurons_N[0])
    return labels[int(result.target_N[0])] if labels else "similarity"


def _overlay(row: Row, attribution: Attribution, method: Method, spec: ModelSpec) -> Bytes8:
    """(H, W, 3): over what the model saw, or at its place in the whole image, of which the model saw a part."""
    map_HW, signed = _overlaid_map(attribution, method), method.drawing == "signed"
    if row.request.params.size == "model":
        return visualization.overlay(row.view_HWC, map_HW, signed=signed)
    placed_HW = visualization.place_in_image(map_HW[None], size=row.placement.size, box=row.placement.box)[0]
    return visualization.overlay(image.display_image(row.request.image, spec), placed_HW, signed=signed)


def _overlaid_map(attribution: Attribution, method: Method) -> Floats:
    """(H, W): the map as it is drawn alone, where single pixels matter spread so that a photograph lets them be seen.

    Of shares that change sign from pixel to pixel only those for the class are left, as a density: smoothed with their
    sign they cancel, and what remains are spots of either colour wherever the image is far from the baseline.
    """
    map_HW = drawn_map(attribution, method)
    if method.overlay_signs == "positive":
        return visualization.smoothed(map_HW.clip(0), sigma=_SHARES_SIGMA)
    return visualization.smoothed(map_HW, sigma=_PIXELS_SIGMA if attribution.values_NCHW.shape[1] > 1 else 0)


def _heatmap(attribution: Attribution, method: Method) -> Bytes8:
    """The attribution alone, in the colours of its kind; (H, W, 3) of the model's grid."""
    if method.drawing == "gradient":
        return visualization.draw_gradient(attribution.values_NCHW[0])
    map_HW = drawn_map(attribution, method)
    return visualization.diverging(map_HW) if method.drawing == "signed" else visualization.sequential(map_HW)


def heatmap_scale(attribution: Attribution, method: Method) -> ColourScale[BarKind]:
    """What the colours of the attribution drawn alone stand for."""
    values_CHW = attribution.values_NCHW[0]
    if method.drawing == "gradient" and len(values_CHW) == 3:
        return ColourScale("grey", gradient_limit(values_CHW))
    limit = visualization.scale(drawn_map(attribution, method))
    return ColourScale("diverging" if method.drawing == "signed" else "sequential", limit)


def overlay_scale(attribution: Attribution, method: Method) -> ColourScale[LaidOver]:
    """What the colours over what the model saw stand for; not those over a whole image of which it saw a part."""
    map_HW = _overlaid_map(attribution, method)
    if method.drawing != "signed":
        return ColourScale("over-sequential", overlay_limit(map_HW.clip(0)))
    only_positive = method.overlay_signs == "positive"
    return ColourScale("over-positive" if only_positive else "over-diverging", overlay_limit(map_HW))


def drawn_map(attribution: Attribution, method: Method) -> Floats:
    """(H, W): summed over channels where signs mean for and against, else the largest magnitude.

    A coarse map is drawn from its own cells: the values are stretched bilinearly, which shows as crosses and edges.
    """
    cells_NCHW = attribution.extras.get("map_NCHW")
    if method.shows_regions and cells_NCHW is not None:
        return visualization.resize_smoothly(cells_NCHW[0, 0], *attribution.values_NCHW.shape[2:])
    reduce = visualization.signed_sum if method.drawing == "signed" else visualization.abs_max
    return np.asarray(reduce(attribution.values_NCHW[0]))
