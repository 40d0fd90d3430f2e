"""A network that takes a known time, so that what is expected of it can be told beforehand."""

from __future__ import annotations

import time

import torch
from engines import Counted, counted
from torch import Tensor, nn


class Pause(nn.Module):
    """Sleeps for each picture that goes through; twice as long again where a gradient comes back."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x_NCHW: Tensor) -> Tensor:
        time.sleep(self.seconds * len(x_NCHW))
        if x_NCHW.requires_grad and torch.is_grad_enabled():
            x_NCHW = x_NCHW * 1.0
            x_NCHW.register_hook(self._back)
        return x_NCHW

    def _back(self, grad: Tensor) -> None:
        time.sleep(2 * self.seconds * len(grad))


def paused(seconds: float) -> tuple[Counted, Pause]:
    """The network of ``engines.counted``, that many seconds slower a picture, and what makes it so."""
    pause = Pause(seconds)
    return counted(pause), pause
