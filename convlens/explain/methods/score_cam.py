"""Score-CAM: the last feature maps, weighted by the score that each one's region keeps."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from convlens.explain.cam import cam_attribution, layer_maps, stretched
from convlens.explain.forward import Forward
from convlens.explain.registry import explainer
from convlens.types import Attribution, Floats, Ints, Step


@explainer(
    "score_cam",
    title="Score-CAM",
    needs="maps",
    drawing="signed",
    shows_regions=True,
    shows="the coarse regions of the feature maps that keep the score up when all else is greyed; no gradient is used.",
    does_not_show="detail, nor how much each region adds: the weights come from a softmax, and often few maps win it.",
    cost=lambda options, _: 4.0 + options["top"],
    cheaper_values=lambda options: ("top", range(options["top"] - 1, 0, -1)),
)
def score_cam(
    forward: Forward, target_N: Ints, *, layer: str = "", top: Annotated[int, Interval(ge=1, le=4096)] = 256
) -> Attribution:
    """Feature maps weighted by the softmax of the logits of the image seen through each (Wang et al. 2020).

    Each map of ``layer`` is stretched to the input's size, scaled to 0..1 and multiplied with the normalised image, so
    that what it leaves out is mean grey; arXiv:1910.01279, algorithm 1. ``top`` takes only so many maps, those of the
    largest range: one forward pass each; the paper takes all. Values (N, 1, H, W) are stretched bilinearly to the
    input's size; ``extras["map_NCHW"]`` is the raw map. ``layer`` is as for ``grad_cam``.
    """
    started = time.perf_counter()
    maps = layer_maps(forward, target_N, layer)
    cams = []
    for n, target in enumerate(target_N):
        maps_CHW = _widest(maps.features_NCHW[n], top)
        # The paper subtracts the logit of a black image from each, which the softmax takes out again.
        weight_C = torch.as_tensor(_logits(forward, n, target, maps_CHW)).to(maps_CHW).softmax(0)
        cams.append((weight_C[:, None, None] * maps_CHW).sum(0, keepdim=True).relu())
    options = {"layer": maps.layer, "top": top}
    return cam_attribution(forward, "score_cam", maps.layer, torch.stack(cams), target_N, options, started=started)


def _widest(maps_CHW: Tensor, top: int) -> Tensor:
    """The ``top`` maps of the largest range, in their order; flat ones, which mask nothing, only where all are."""
    range_C = maps_CHW.amax((1, 2)) - maps_CHW.amin((1, 2))
    widest = range_C.argsort(descending=True, stable=True)[: max(1, min(top, int((range_C > 0).sum())))]
    return maps_CHW[widest.sort().values]


def _logits(forward: Forward, row: int, target: int, maps_CHW: Tensor) -> Floats:
    """The target's logit of the row's image, seen through each map; (C,)."""
    logits: list[float] = []
    x_CHW, count = forward.x_NCHW[row], len(maps_CHW)

    def seen_through(first: int, last: int) -> Tensor:
        return x_CHW * _masks(maps_CHW[first:last], forward)

    with closing(forward.outputs_in_parts(count, seen_through)) as outputs:
        for logits_NK in outputs:
            logits += logits_NK[:, target].tolist()
            forward.on_step(Step("score_cam", row * count + len(logits), count * len(forward)))
    return np.asarray(logits)


def _masks(maps_CHW: Tensor, forward: Forward) -> Tensor:
    """The maps in the input's size and scaled to 0..1; (C, 1, H, W)."""
    masks_C1HW = stretched(maps_CHW[:, None], forward)
    low, high = masks_C1HW.amin((2, 3), keepdim=True), masks_C1HW.amax((2, 3), keepdim=True)
    return torch.where(high > low, (masks_C1HW - low) / (high - low), torch.zeros_like(masks_C1HW))
