"""L-BFGS, one iteration at a time, so that a run can be saved between any two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convlens.synth.base import State
from convlens.synth.step_gradient import StepGradient

_HISTORY = 20  # Gatys et al. 2015


class ResumableLBFGS:
    """Minimises the loss that ``gradient`` gives with it, in place, by torch's L-BFGS with strong Wolfe line search.

    ``evaluations`` counts the calls of ``gradient``.
    """

    def __init__(self, x: Tensor, gradient: StepGradient) -> None:
        self.x = x.detach().clone().requires_grad_()
        self._gradient = gradient
        self._optimizer: Any = torch.optim.LBFGS(
            [self.x],
            max_iter=1,
            max_eval=25,
            history_size=_HISTORY,
            line_search_fn="strong_wolfe",
            tolerance_grad=0.0,
            tolerance_change=0.0,
        )
        self._last: tuple[Tensor, Tensor, Tensor] | None = None  # x, loss and gradient of the last evaluation
        self.evaluations = 0

    def step(self) -> Tensor:
        """One iteration. Returns the loss at its start."""
        loss: Tensor = self._optimizer.step(self._closure)
        return loss.detach()

    def state_dict(self) -> State:
        return {"x": self.x.detach(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: State) -> None:
        with torch.no_grad():
            self.x.copy_(state["x"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._last = None

    def _closure(self) -> Tensor:
        # torch's optimizer evaluates the first point of each iteration anew, although the previous line search mostly
        # ended there. Remembering that value saves nearly half of all evaluations.
        if self._last is None or not torch.equal(self._last[0], self.x):
            loss, _, grad = self._gradient(self.x)
            self.evaluations += 1
            self._last = self.x.detach().clone(), loss, grad
        _, loss, grad = self._last
        self.x.grad = grad.clone(memory_format=torch.contiguous_format)
        return loss
