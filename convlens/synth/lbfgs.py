"""L-BFGS, one iteration at a time, so that it can be put away between any two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convlens.synth.base import State

Value = Callable[[Tensor], Tensor]
"""The loss at ``x``, differentiable."""

_HISTORY = 20  # Gatys et al. 2015


class ResumableLBFGS:
    """Minimises ``loss`` from ``x``, in place, by torch's L-BFGS with strong Wolfe line search.

    torch's optimizer evaluates each iteration's first point anew, although the line search of the iteration before
    mostly ended there: that value is remembered, which saves nearly half of all evaluations. ``evaluations`` counts
    those made.
    """

    def __init__(self, x: Tensor, loss: Value) -> None:
        self.x = x.detach().clone().requires_grad_()
        self._loss = loss
        self._optimizer: Any = torch.optim.LBFGS(
            [self.x],
            max_iter=1,
            max_eval=25,
            history_size=_HISTORY,
            line_search_fn="strong_wolfe",
            tolerance_grad=0.0,
            tolerance_change=0.0,
        )
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None
        self.evaluations = 0

    def step(self) -> Tensor:
        """One iteration; the loss where it began."""
        found: Tensor = self._optimizer.step(self._value)
        return found.detach()

    def state_dict(self) -> State:
        return {"x": self.x.detach(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: State) -> None:
        with torch.no_grad():
            self.x.copy_(state["x"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._seen = None

    def _value(self) -> Tensor:
        if self._seen is None or not torch.equal(self._seen[0], self.x):
            with torch.enable_grad():
                value = self._loss(self.x)
                (grad,) = torch.autograd.grad(value, self.x)
            self.evaluations += 1
            self._seen = self.x.detach().clone(), value.detach(), grad
        _, value, grad = self._seen
        self.x.grad = grad.clone(memory_format=torch.contiguous_format)
        return value
