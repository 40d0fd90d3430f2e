"""LayerCAM: a layer's feature maps, each cell weighted by its own gradient where that is positive."""

from __future__ import annotations

import time

from torch import Tensor

from convlens.explain.cam import cam_attribution, layer_maps
from convlens.explain.forward import Forward
from convlens.explain.registry import explainer
from convlens.types import Attribution, Ints


@explainer(
    "layer_cam",
    title="LayerCAM",
    needs="maps",
    drawing="signed",
    shows_regions=True,
    shows="where a layer's features speak for the class, cell by cell, also in earlier layers with finer maps.",
    does_not_show="evidence against the class: negative gradients are dropped.",
)
def layer_cam(forward: Forward, target_N: Ints, *, layer: str = "") -> Attribution:
    """relu(Σ_c relu(g) · A): features times their positive gradients (Jiang et al. 2021, doi:10.1109/TIP.2021.3089943).

    Values (N, 1, H, W) are stretched bilinearly to the input's size; ``extras["map_NCHW"]`` is the raw map. ``layer``
    is as for ``grad_cam``.
    """
    started = time.perf_counter()
    maps = layer_maps(forward, target_N, layer)
    cam_N1HW: Tensor = (maps.gradient_NCHW.relu() * maps.features_NCHW).sum(1, keepdim=True).relu()
    options = {"layer": maps.layer}
    return cam_attribution(forward, "layer_cam", maps.layer, cam_N1HW, target_N, options, started=started)
