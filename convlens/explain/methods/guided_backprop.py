"""Guided backprop: the gradient without its negative parts at every ReLU."""

from __future__ import annotations

import time

from convlens.explain.forward import Forward
from convlens.explain.registry import explainer
from convlens.types import Attribution, Ints


@explainer(
    "guided_backprop",
    title="Guided backprop",
    needs="gradient",
    drawing="gradient",
    shows="the fine detail in the image that excites the units behind the score.",
    does_not_show="much about the class: randomising the top layers hardly changes it (Adebayo et al. 2018).",
    caution="such maps hardly change when the network's top layers get random weights: they say little about the class "
    "(Adebayo et al. 2018)",
)
def guided_backprop(forward: Forward, target_N: Ints) -> Attribution:
    """max(g, 0) · [x > 0] at every ReLU on the way back from the target's logit (Springenberg 2014, arXiv:1412.6806).

    Values (N, C, H, W) are signed, in units of logit per normalised pixel. Raises UnsupportedModelError for
    networks with other activations than ReLU.
    """
    # Deconvnet's rule and the true gradient's at once: both conditions must hold for a gradient to pass.
    started = time.perf_counter()
    grad = forward.gradient("guided", target_N, method="guided_backprop")
    return forward.attribution(
        "guided_backprop", grad, target_N, {}, forward.meta("logit", started=started, ruled=True)
    )
