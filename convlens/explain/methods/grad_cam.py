"""Grad-CAM: the last feature maps, weighted by the gradients of the score."""

from __future__ import annotations

import time

from convlens.explain.cam import cam_attribution, grad_cam_map, layer_maps
from convlens.explain.forward import Forward
from convlens.explain.registry import explainer
from convlens.types import Attribution, Ints


@explainer(
    "grad_cam",
    title="Grad-CAM",
    needs="maps",
    drawing="signed",
    shows_regions=True,
    shows="the coarse regions whose features in the last spatial layer speak for the class.",
    does_not_show="detail: its raw map has only a few cells a side and is stretched over the image.",
)
def grad_cam(forward: Forward, target_N: Ints, *, layer: str = "", relu: bool = True) -> Attribution:
    """Feature maps of ``layer`` weighted by their mean gradients, summed (Selvaraju et al. 2017, arXiv:1610.02391).

    Values (N, 1, H, W) are stretched bilinearly to the input's size; ``extras["map_NCHW"]`` is the raw map. ``layer``
    defaults to the spec's ``gradcam_layer``; RequestError for one that does not exist, does not run or has no
    map. ``relu=False`` keeps the evidence against the class as well.
    """
    started = time.perf_counter()
    maps = layer_maps(forward, target_N, layer)
    cam_N1HW = grad_cam_map(maps).relu() if relu else grad_cam_map(maps)
    options = {"layer": maps.layer, "relu": relu}
    return cam_attribution(forward, "grad_cam", maps.layer, cam_N1HW, target_N, options, started=started)
