"""Integrated gradients, by captum, adapted to our result type."""

from __future__ import annotations

import time
from typing import Annotated

import torch
from annotated_types import Interval

from convlens.explain.forward import ForwardPass
from convlens.explain.registry import explainer
from convlens.types import Attribution, Floats, Ints

BATCH = 16


@explainer(
    "integrated_gradients",
    title="Integrated gradients",
    needs="model",
    drawing="signed",
    shows="each pixel's share of the score's rise from a grey picture to this one; the shares add up to it.",
    does_not_show="anything where the picture equals the baseline: mean-grey regions always get zero.",
    cost=lambda options, _: 3.0 * options["steps"],
)
def integrated_gradients(
    forward: ForwardPass,
    target_N: Ints,
    *,
    steps: Annotated[int, Interval(ge=2, le=1000)] = 50,
    baseline: Annotated[float, Interval(ge=-10.0, le=10.0)] = 0.0,
) -> Attribution:
    """Gradients of the logit, averaged on the path from ``baseline``, times the difference (Sundararajan 2017).

    Values (N, C, H, W) are signed, in units of the logit: over C, H, W they sum to logit(x) − logit(baseline), but
    for the quadrature's error, which ``extras["gap_N"]`` states. ``baseline`` is in normalised units, 0 is grey.
    Gauss–Legendre quadrature with ``steps`` nodes, by captum. arXiv:1703.01365.
    """
    started = time.perf_counter()
    rows = [_one(forward, n, int(target_N[n]), steps, baseline) for n in range(len(forward))]
    values_NCHW = torch.cat([values for values, _ in rows])
    gap_N: Floats = torch.cat([gap for _, gap in rows]).cpu().numpy()
    options = {"steps": steps, "baseline": baseline}
    meta = forward.meta("logit", started=started, runtime="torch+captum")
    return forward.attribution("integrated_gradients", values_NCHW, target_N, options, meta, {"gap_N": gap_N})


def _one(forward: ForwardPass, n: int, target: int, steps: int, baseline: float) -> tuple[torch.Tensor, torch.Tensor]:
    from captum.attr import IntegratedGradients  # on first use: it is slow to import and brings matplotlib

    x_NCHW = forward.x_NCHW[n : n + 1].clone().requires_grad_()
    # Row by row: captum would cut steps × rows into batches whose make-up, and so the last digits, depend on the
    # neighbours.
    values, gap = IntegratedGradients(forward.classifier.module).attribute(
        x_NCHW,
        baselines=baseline,
        target=target,
        n_steps=steps,
        method="gausslegendre",
        internal_batch_size=BATCH,
        return_convergence_delta=True,
    )
    return values.detach(), gap.detach()
