"""Grad-CAM++: the last feature maps, weighted so that several copies of an object count alike."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from convlens.explain.cam import cam_attribution, layer_maps
from convlens.explain.forward import Forward
from convlens.explain.registry import explainer
from convlens.types import Attribution, Ints


@explainer(
    "grad_cam_plus_plus",
    title="Grad-CAM++",
    needs="maps",
    drawing="signed",
    shows_regions=True,
    shows="the coarse regions that speak for the class, small ones and further copies of an object weighted up.",
    does_not_show="evidence against the class, which its weights leave out, nor detail finer than the layer's cells.",
)
def grad_cam_plus_plus(forward: Forward, target_N: Ints, *, layer: str = "") -> Attribution:
    """Feature maps weighted by Σ α · relu(g), summed, rectified (Chattopadhay et al. 2018, arXiv:1710.11063).

    α is g² / (2 g² + ΣA · g³), 0 where that denominator is. Values (N, 1, H, W) are stretched bilinearly to the input's
    size; ``extras["map_NCHW"]`` is the raw map, in the paper's units divided by exp(logit). ``layer`` is as for
    ``grad_cam``.
    """
    started = time.perf_counter()
    maps = layer_maps(forward, target_N, layer)
    # The paper's score is exp(logit): its derivatives by the features are exp(logit) times g, g² and g³ (equations 15
    # and 16), and that factor, the same for all cells, would overflow for large logits.
    g, features = maps.gradient_NCHW, maps.features_NCHW
    denominator = 2 * g**2 + features.sum((2, 3), keepdim=True) * g**3
    alpha = torch.where(denominator != 0, g**2 / denominator, torch.zeros_like(g))
    weight_NC11 = (alpha * g.relu()).sum((2, 3), keepdim=True)
    cam_N1HW: Tensor = (weight_NC11 * features).sum(1, keepdim=True).relu()
    options = {"layer": maps.layer}
    return cam_attribution(forward, "grad_cam_plus_plus", maps.layer, cam_N1HW, target_N, options, started=started)
