"""Networks as people write them, each of another kind; a file that stands alone, so that it can be packed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def trunk(channels: int) -> nn.Sequential:
    """Maps (N, 8, h, w) of images; seeded, with statistics in its batch norm."""
    torch.manual_seed(channels)
    layers = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
    )
    layers[1].running_mean.uniform_(-0.5, 0.5)
    layers[1].running_var.uniform_(0.5, 2.0)
    return layers


class Net(nn.Module):
    """A trunk, a linear layer on the mean of its maps, and an end."""

    def __init__(self, channels: int, classes: int, end: nn.Module | None = None) -> None:
        super().__init__()
        self.features = trunk(channels)
        self.head = nn.Linear(8, classes)
        self.end = end or nn.Sequential()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.end(self.head(self.features(x_NCHW).mean((2, 3))))


class Detecting(Net):
    """Returns a dict, as networks with several tasks do."""

    def forward(self, x_NCHW: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        maps = self.features(x_NCHW)
        return {"boxes": maps[:, :4], "logits": self.head(maps.mean((2, 3)))}


class ArcFace(nn.Module):
    """Scaled cosines between an embedding and the centres of classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = trunk(3)
        self.embedding = nn.Linear(8, 5)
        self.centres = nn.Parameter(torch.randn(classes, 5))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        embedding_ND = self.embedding(self.features(x_NCHW).mean((2, 3)))
        return 16 * functional.linear(functional.normalize(embedding_ND), functional.normalize(self.centres))


class Lowered(Net):
    """Computes in bfloat16 by itself."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x_NCHW)


class Embedding(nn.Module):
    """A trunk whose classifier was taken off."""

    def __init__(self) -> None:
        super().__init__()
        self.features = trunk(3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Identity()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x_NCHW)).flatten(1))


def binary_grey() -> nn.Module:
    """One logit of one channel: an X-ray, say."""
    return Net(1, 1)


def six_channels() -> nn.Module:
    """Bands of a satellite."""
    return Net(6, 4)


def multi_label() -> nn.Module:
    """Labels that do not exclude each other."""
    return Net(3, 5, nn.Sigmoid())


def rectangle() -> nn.Module:
    """Classes of images that are wider than high."""
    return Net(3, 4)


def cosines() -> nn.Module:
    return ArcFace(7)


def dictionary() -> nn.Module:
    return Detecting(3, 4)


def features() -> nn.Module:
    return Embedding()


def doubles() -> nn.Module:
    return Net(3, 4).double()


def autocast() -> nn.Module:
    return Lowered(3, 4)


def many_classes() -> nn.Module:
    return Net(3, 21841)
