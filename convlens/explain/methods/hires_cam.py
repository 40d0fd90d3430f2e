"""HiResCAM: the last feature maps, each cell weighted by its own gradient."""

from __future__ import annotations

import time

from torch import Tensor

from convlens.explain.cam import cam_attribution, layer_maps
from convlens.explain.forward import Forward
from convlens.explain.registry import explainer
from convlens.types import Attribution, Ints


@explainer(
    "hires_cam",
    title="HiResCAM",
    needs="maps",
    drawing="signed",
    shows_regions=True,
    shows="the coarse regions that speak for the class, each cell by its own gradient; "
    "where the head averages the maps, the same as Grad-CAM.",
    does_not_show="detail: its raw map has only a few cells a side and is stretched over the image.",
)
def hires_cam(forward: Forward, target_N: Ints, *, layer: str = "", relu: bool = True) -> Attribution:
    """Feature maps of ``layer`` times their gradients, summed over channels (Draelos & Carin 2020, arXiv:2011.08891).

    Values (N, 1, H, W) are stretched bilinearly to the input's size; ``extras["map_NCHW"]`` is the raw map, which with
    ``relu=False`` sums to the logit less its bias where all layers behind ``layer`` are linear. ``layer`` is as for
    ``grad_cam``.
    """
    started = time.perf_counter()
    maps = layer_maps(forward, target_N, layer)
    cam_N1HW: Tensor = (maps.gradient_NCHW * maps.features_NCHW).sum(1, keepdim=True)
    cam_N1HW = cam_N1HW.relu() if relu else cam_N1HW
    options = {"layer": maps.layer, "relu": relu}
    return cam_attribution(forward, "hires_cam", maps.layer, cam_N1HW, target_N, options, started=started)
