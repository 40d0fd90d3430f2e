"""Gradients for ascent that pass dead ReLUs, so that a unit that nothing excites can be reached at all."""

from __future__ import annotations

import torch
from torch import Tensor

from convlens.instrument.relu import RuledRelus, masked


class RedirectedRelus(RuledRelus):
    """Inside this ``with``, where no gradient at all would pass a ReLU for a row, it passes redirected.

    Redirected: everywhere but where a unit that is off would be pushed further off, or one of a ReLU6 that is at its
    upper end further up. Meant for maximising, for the first steps (Olah et al. 2017; Lucid's
    ``redirected_relu_grad``, whose signs are those of minimising).
    """

    def passed(self, grad: Tensor, kept: Tensor, upper: float | None) -> Tensor:
        plain = masked(grad, kept, upper)
        useless = (kept <= 0) & (grad < 0)
        if upper is not None:
            useless |= (kept >= upper) & (grad > 0)
        nothing_N = (plain.flatten(1) == 0).all(1).view(-1, *[1] * (grad.ndim - 1))
        return torch.where(nothing_N, grad.masked_fill(useless, 0.0), plain)
