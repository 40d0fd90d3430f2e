"""Grad-CAM: the last feature maps, weighted by the gradients of the score."""

from __future__ import annotations

import time

from torch import Tensor
from torch.nn import functional

from convlens.explain.registry import explainer
from convlens.explain.torch_forward import ForwardPass
from convlens.runtime.torch_runtime import to_host
from convlens.types import Attribution, Ints


@explainer(
    "grad_cam",
    title="Grad-CAM",
    needs="model",
    drawing="signed",
    shows="the coarse regions whose features in the last spatial layer speak for the class.",
    does_not_show="detail: its raw map has only a few cells a side and is stretched over the image.",
)
def grad_cam(forward: ForwardPass, target_N: Ints, *, layer: str = "", relu: bool = True) -> Attribution:
    """Feature maps of ``layer`` weighted by their mean gradients, summed (Selvaraju et al. 2017, arXiv:1610.02391).

    Values (N, 1, H, W) are stretched bilinearly to the input's size; ``extras["map_NCHW"]`` is the raw map. ``layer``
    defaults to the spec's ``gradcam_layer``; RequestError for one that does not exist, does not run or has no
    map. ``relu=False`` keeps the evidence against the class as well.
    """
    started = time.perf_counter()
    name = layer or forward.spec.gradcam_layer
    features_NCHW, gradient_NCHW = forward.layer_gradient(name, target_N)
    weight_NC11 = gradient_NCHW.to(forward.x_NCHW.dtype).mean((2, 3), keepdim=True)  # bfloat16, in a network's autocast
    cam_N1HW: Tensor = (weight_NC11 * features_NCHW).sum(1, keepdim=True)
    cam_N1HW = cam_N1HW.relu() if relu else cam_N1HW
    stretched = functional.interpolate(cam_N1HW, tuple(forward.x_NCHW.shape[-2:]), mode="bilinear")
    meta = forward.meta("logit", started=started, layer=name)
    extras = {"map_NCHW": to_host(cam_N1HW)}
    return forward.attribution("grad_cam", stretched, target_N, {"layer": name, "relu": relu}, meta, extras)
