"""A network whose weights are sums of powers of two, the same on every machine; ``file:network.py:network``."""

import torch
from torch import nn


def _fill(*shape: int) -> nn.Parameter:
    """Whole sixteenths from −0.5 to 0.5, in an order without a pattern."""
    count = torch.Size(shape).numel()
    return nn.Parameter((torch.arange(count) * 37 % 17 - 8).reshape(shape) / 16)


class Network(nn.Module):
    """(N, 3, 16, 16) to logits (N, 4); the embedding has 8 values."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.first.weight = _fill(8, 3, 3, 3)
        self.head = nn.Linear(8, 4, bias=False)
        self.head.weight = _fill(4, 8)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.first(x_NCHW)).mean((2, 3)))


def network() -> nn.Module:
    return Network()
