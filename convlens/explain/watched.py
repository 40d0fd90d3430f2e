"""A network handed to captum that tells how far the work has come, and so can be stopped between two batches."""

from __future__ import annotations

from torch import Tensor

from convlens.explain.forward import ForwardPass
from convlens.types import Step


class Watched:
    """The module of a forward pass as a function: before each batch it tells ``on_step`` how many pictures are done.

    What ``on_step`` raises ends the work. ``total`` is how many there will be, or a few less.
    """

    def __init__(self, forward: ForwardPass, stage: str, total: int) -> None:
        self._module, self._on_step = forward.classifier.module, forward.on_step
        self._stage, self._total = stage, total
        self._done = 0

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        self._on_step(Step(self._stage, min(self._done, self._total), self._total))
        logits_NK: Tensor = self._module(x_NCHW)
        self._done += len(x_NCHW)
        return logits_NK
