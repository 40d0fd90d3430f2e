"""Input × gradient: each pixel's first-order share of the score."""

from __future__ import annotations

import time

import torch

from convlens.explain.forward import Forward
from convlens.explain.registry import explainer
from convlens.types import Attribution, Ints, ScoreKind


@explainer(
    "input_x_gradient",
    title="Input × gradient",
    needs="gradient",
    drawing="signed",
    overlay_signs="positive",
    shows="each pixel's share of the score, as far as the network is linear around this image.",
    does_not_show="what the non-linear part contributes, nor anything where the image is mean grey.",
)
def input_x_gradient(forward: Forward, target_N: Ints, *, score: ScoreKind = "logit") -> Attribution:
    """The normalised image times the gradient of the target's score (Shrikumar et al. 2016, arXiv:1605.01713).

    Values (N, C, H, W) are signed, in units of the score.
    """
    started = time.perf_counter()
    grad = torch.as_tensor(forward.gradient("plain", target_N, score=score, method="input_x_gradient"))
    values_NCHW = grad.to(forward.x_NCHW.device) * forward.x_NCHW  # a graph's gradient lies on the CPU
    meta = forward.meta(score, started=started, ruled=True)
    return forward.attribution("input_x_gradient", values_NCHW, target_N, {"score": score}, meta)
