"""Saliency: how much each pixel's value moves the score."""

from __future__ import annotations

import time

from convlens.explain.forward import Forward
from convlens.explain.registry import explainer
from convlens.types import Attribution, Ints, ScoreKind


@explainer(
    "saliency",
    title="Saliency",
    needs="gradient",
    drawing="magnitude",
    shows="the pixels whose small changes move the score most.",
    does_not_show="whether they speak for or against the class, nor what a big change would do.",
)
def saliency(forward: Forward, target_N: Ints, *, score: ScoreKind = "logit") -> Attribution:
    """The gradient of the target's score by the normalised image (Simonyan et al. 2013, arXiv:1312.6034).

    Values (N, C, H, W) are signed and per channel; the paper's map is their ``visualization.abs_max``. With
    ``score="probability"`` a confident prediction has hardly any gradient: the softmax is flat there.
    """
    started = time.perf_counter()
    # The logit by default: of a class with probability 1.000 the probability's gradient was 1e-9.
    grad = forward.gradient("plain", target_N, score=score, method="saliency")
    return forward.attribution(
        "saliency", grad, target_N, {"score": score}, forward.meta(score, started=started, ruled=True)
    )
