"""Integrated gradients, by captum: gradients on the path from a baseline to the image."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval

from convlens.explain.registry import explainer
from convlens.explain.torch_forward import ForwardPass, ProgressModule
from convlens.runtime.memory import with_smaller_batch
from convlens.types import Attribution, Floats, Ints

_BATCH = 16
_TOLERATED_GAP = 0.1  # of the rise


@explainer(
    "integrated_gradients",
    title="Integrated gradients",
    needs="model",
    drawing="signed",
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
    Gauss–Legendre quadrature with ``steps`` nodes, by captum. arXiv:1703.01365.
    """
    started = time.perf_counter()
    rows = [
        with_smaller_batch(partial(_attribute_row, forward, n, int(target), steps, baseline), _BATCH)
        for n, target in enumerate(target_N)
    ]
    values_NCHW = torch.cat([values for values, _ in rows])
    gap_N: Floats = torch.cat([gap for _, gap in rows]).cpu().numpy()
    options = {"steps": steps, "baseline": baseline}
    rise_N = values_NCHW.flatten(1).sum(1).cpu().numpy() - gap_N
    meta = forward.meta("logit", started=started, runtime="torch+captum", warnings=_warnings(gap_N, rise_N, steps))
    return forward.attribution("integrated_gradients", values_NCHW, target_N, options, meta, {"gap_N": gap_N})


def _attribute_row(
    forward: ForwardPass, n: int, target: int, steps: int, baseline: float, batch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    from captum.attr import IntegratedGradients  # on first use: it is slow to import and brings matplotlib

    x_NCHW = forward.x_NCHW[n : n + 1].clone().requires_grad_()
    # Row by row: captum would cut steps × rows into batches whose make-up, and so the last digits, depend on the
    # neighbours.
    values, gap = IntegratedGradients(ProgressModule(forward, "integrated_gradients", steps)).attribute(
        x_NCHW,
        baselines=baseline,
        target=target,
        n_steps=steps,
        method="gausslegendre",
        internal_batch_size=batch,
        return_convergence_delta=True,
    )
    return values.detach(), gap.detach()


def _warnings(gap_N: Floats, rise_N: Floats, steps: int) -> tuple[str, ...]:
    # On ReLU networks the gradient jumps along the path, and 50 steps may miss a twentieth of the rise (measured).
    missed = float(np.max(np.abs(gap_N) / np.maximum(np.abs(rise_N), 1e-6), initial=0.0))
    if missed <= _TOLERATED_GAP:
        return ()
    return (f"the shares miss the score's rise by {missed:.0%} with steps={steps}; more steps bring them nearer",)
