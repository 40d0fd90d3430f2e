"""A network for which a lecture takes seconds; a file that stands alone, so that it is loaded by its name."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def make() -> nn.Module:
    """Four convolutions with pooling, seeded. Normalised over clouds of colour, so that its ten classes depend on the
    image and a small change fools it.
    """
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12, momentum=None),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.BatchNorm2d(12, momentum=None),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.BatchNorm2d(16, momentum=None),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(16, momentum=None),
        nn.Linear(16, 10),
    )
    clouds = functional.interpolate(3 * torch.rand(64, 3, 8, 8) - 1.5, size=(64, 64), mode="bilinear")
    with torch.no_grad():
        network(clouds + 0.2 * torch.randn(64, 3, 64, 64))
        network[-1].weight *= 4
    return network
