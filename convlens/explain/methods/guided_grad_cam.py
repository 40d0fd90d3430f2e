"""Guided Grad-CAM: guided backprop's detail, where Grad-CAM sees the class."""

from __future__ import annotations

import time

import torch

from convlens.explain.cam import grad_cam_map, layer_maps, stretched
from convlens.explain.forward import Forward
from convlens.explain.registry import explainer
from convlens.runtime.torch_runtime import to_host
from convlens.types import Attribution, Ints


@explainer(
    "guided_grad_cam",
    title="Guided Grad-CAM",
    needs="maps",
    drawing="gradient",
    shows="the fine detail inside the regions that speak for the class.",
    does_not_show="whether that detail matters to the class: only the choice of regions depends on it.",
    cost=lambda _, __: 6.0,
)
def guided_grad_cam(forward: Forward, target_N: Ints, *, layer: str = "") -> Attribution:
    """Guided backprop times the stretched, rectified Grad-CAM map (Selvaraju et al. 2017, arXiv:1610.02391).

    Values (N, C, H, W) are signed; ``extras["map_NCHW"]`` is Grad-CAM's raw map. ``layer`` is as for ``grad_cam``.
    Raises UnsupportedModelError for networks with other activations than ReLU.
    """
    started = time.perf_counter()
    guided_NCHW = forward.gradient("guided", target_N, method="guided_grad_cam")
    maps = layer_maps(forward, target_N, layer)
    cam_N1HW = grad_cam_map(maps).relu()
    values_NCHW = torch.mul(torch.as_tensor(guided_NCHW), stretched(cam_N1HW, forward))
    meta = forward.meta("logit", started=started, layer=maps.layer, ruled=True)
    extras = {"map_NCHW": to_host(cam_N1HW)}
    return forward.attribution("guided_grad_cam", values_NCHW, target_N, {"layer": maps.layer}, meta, extras)
