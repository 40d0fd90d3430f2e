"""Integrated gradients: gradients on the path from a baseline to the image."""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from convlens.explain.registry import explainer
from convlens.explain.sampled_gradients import Points, PointsOfRows, summed_gradients
from convlens.explain.torch_forward import ForwardPass
from convlens.types import Attribution, Floats, Ints

_TOLERATED_GAP = 0.1  # of the rise


@explainer(
    "integrated_gradients",
    title="Integrated gradients",
    needs="model",
    drawing="signed",
    overlay_signs="positive",
    shows="each pixel's share of the score's rise from a grey image to this one; the shares add up to it.",
    does_not_show="anything where the image equals the baseline: mean-grey regions always get zero.",
    cost=lambda options, _: 3.0 * options["steps"],
    cheaper_values=lambda options: ("steps", range(options["steps"] - 1, 1, -1)),
)
def integrated_gradients(
    forward: ForwardPass,
    target_N: Ints,
    *,
    steps: Annotated[int, Interval(ge=2, le=1000)] = 50,
    baseline: Annotated[float, Interval(ge=-10.0, le=10.0)] = 0.0,
) -> Attribution:
    """Gradients of the logit, averaged on the path from ``baseline``, times the difference (Sundararajan 2017).

    Values (N, C, H, W) are signed, in units of the logit: over C, H, W they sum to logit(x) − logit(baseline) up
    to the quadrature's error, which ``extras["gap_N"]`` states. ``baseline`` is in normalised units, 0 is grey.
    Gauss–Legendre quadrature with ``steps`` nodes. arXiv:1703.01365.
    """
    started = time.perf_counter()
    x_NCHW = forward.x_NCHW
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    shares_P, difference = torch.as_tensor((nodes + 1) / 2).to(x_NCHW), x_NCHW - baseline  # nodes are on [-1, 1]

    def on_path(numbers: Tensor) -> PointsOfRows:
        return lambda rows: Points(baseline + shares_P[numbers, None, None, None] * difference[rows, None])

    mean = summed_gradients(
        forward, target_N, torch.as_tensor(weights / 2), lambda: on_path, stage="integrated_gradients"
    )
    values_NCHW = mean * difference
    with torch.no_grad():
        grey_K = forward.classifier.module(torch.full_like(forward.x_NCHW[:1], baseline))[0].cpu().numpy()
    rise_N = forward.scores(target_N, "logit") - grey_K[target_N]
    gap_N = values_NCHW.flatten(1).sum(1).cpu().numpy() - rise_N
    options = {"steps": steps, "baseline": baseline}
    meta = forward.meta("logit", started=started, warnings=_warnings(gap_N, rise_N, steps))
    return forward.attribution("integrated_gradients", values_NCHW, target_N, options, meta, {"gap_N": gap_N})


def _warnings(gap_N: Floats, rise_N: Floats, steps: int) -> tuple[str, ...]:
    # On ReLU networks the gradient jumps along the path, and 50 steps may miss a twentieth of the rise (measured).
    missed = float(np.max(np.abs(gap_N) / np.maximum(np.abs(rise_N), 1e-6), initial=0.0))
    if missed <= _TOLERATED_GAP:
        return ()
    return (f"the shares miss the score's rise by {missed:.0%} with steps={steps}; more steps bring them nearer",)
