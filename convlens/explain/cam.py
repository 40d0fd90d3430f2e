"""Class activation maps: what the methods of the Grad-CAM family share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from convlens.explain.forward import Forward
from convlens.runtime.torch_runtime import to_host
from convlens.types import Attribution, Ints


@dataclass(frozen=True)
class LayerMaps:
    """A layer's maps, and the gradients of the targets' logits by them."""

    layer: str
    features_NCHW: Tensor
    gradient_NCHW: Tensor


def layer_maps(forward: Forward, target_N: Ints, layer: str) -> LayerMaps:
    """Of the layer of that name, or of the spec's ``gradcam_layer``; raises as ``Forward.layer_gradient``."""
    name = layer or forward.spec.gradcam_layer
    features_NCHW, gradient_NCHW = forward.layer_gradient(name, target_N)
    dtype = forward.x_NCHW.dtype  # bfloat16, in a network's autocast
    return LayerMaps(name, features_NCHW.to(dtype), gradient_NCHW.to(dtype))


def grad_cam_map(maps: LayerMaps) -> Tensor:
    """Grad-CAM's raw map (N, 1, h, w), before any ReLU (Selvaraju et al. 2017, equations 1 and 2)."""
    weight_NC11 = maps.gradient_NCHW.mean((2, 3), keepdim=True)
    return (weight_NC11 * maps.features_NCHW).sum(1, keepdim=True)


def stretched(cam_N1HW: Tensor, forward: Forward) -> Tensor:
    """The map, bilinearly, in the size of the input."""
    return functional.interpolate(cam_N1HW, tuple(forward.x_NCHW.shape[-2:]), mode="bilinear")


def cam_attribution(
    forward: Forward,
    method: str,
    layer: str,
    cam_N1HW: Tensor,
    target_N: Ints,
    options: Mapping[str, Any],
    *,
    started: float,
) -> Attribution:
    """The stretched map as values, the raw one as ``extras["map_NCHW"]``."""
    meta = forward.meta("logit", started=started, layer=layer)
    extras = {"map_NCHW": to_host(cam_N1HW)}
    return forward.attribution(method, stretched(cam_N1HW, forward), target_N, options, meta, extras)
