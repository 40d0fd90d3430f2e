"""Engines around small networks, and requests to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import galleries
import numpy as np
import torch
from nets import CPU, pictures
from PIL import Image
from torch import Tensor, nn

from convlens.engine.engine import Engine, EngineOptions
from convlens.gallery import Gallery
from convlens.models import Classifier
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.types import Attribution, ModelSpec, Reply

SIDE = 24
# Two classes of one name, and two whose names differ in case alone, as ImageNet has them.
LABELS = ("crane", "Cardigan", "cardigan", "crane", "tiger cat", "line\nbreak")


class Counted(nn.Module):
    """A ReLU network that counts its forward passes, and the backward passes through it."""

    def __init__(self, faults: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 12, 3, padding=1)
        self.faults = faults or nn.Identity()
        self.head = nn.Linear(12, len(LABELS))
        self.batches: list[int] = []  # lists, so that copies of the module count into the same
        self.backwards: list[int] = []
        self.recorded: list[bool] = []

    def forward(self, x_NCHW: Tensor) -> Tensor:
        self.batches.append(len(x_NCHW))
        x = self.first(self.faults(x_NCHW))
        self.recorded.append(torch.is_grad_enabled())
        if x.requires_grad:
            x.register_hook(self._count)
        return self.head(self.second(x.relu()).relu().mean((2, 3)))

    def _count(self, grad: Tensor) -> None:
        self.backwards.append(len(grad))


class Tripwire(nn.Module):
    """Passes pictures on, but does something about those that are marked by a corner pixel of full red."""

    def __init__(self, action: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.action = action

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.action(x_NCHW, x_NCHW[:, 0, 0, 0] > 1.9)


def counted(faults: nn.Module | None = None) -> Counted:
    """The same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Counted(faults).eval()


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
    """The network of ``counted``, that many seconds slower a picture, and what makes it so."""
    pause = Pause(seconds)
    return counted(pause), pause


def classifier(module: nn.Module) -> Classifier:
    spec = ModelSpec(
        name="test:counted",
        crop=SIDE,
        resize=SIDE,
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        labels=LABELS,
        embedding_layer="head",
        gradcam_layer="second",
        first_convolution="first",
        weights_sha256=galleries.SHA,
    )
    return Classifier(module, spec, CPU, "test:counted")


def engine(module: nn.Module | None = None, *, gallery: Gallery | None = None, **options: Any) -> Engine:
    return Engine(classifier(module or counted()), gallery=gallery, options=EngineOptions(**options))


def small_gallery(folder: Path, count: int = 6) -> Gallery:
    """Of random embeddings, by the weights that ``classifier`` claims to have."""
    return galleries.make(folder, pictures(count, 12, seed=5).numpy())


def picture(seed: int = 0, *, marked: bool = False, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Noise, seen pixel by pixel by the model. ``marked`` is what a Tripwire answers to; others never look so."""
    pixels_HWC = np.random.default_rng(seed).integers(0, 220, (size[1], size[0], 3), dtype=np.uint8)
    if marked:
        pixels_HWC[0, 0] = 255, 0, 0
    return Image.fromarray(pixels_HWC)


def request(seed: int = 0, *, marked: bool = False, **params: Any) -> Request:
    return Request(picture(seed, marked=marked), parse_params(params))


def replied(answer: object) -> Reply:
    assert isinstance(answer, Reply), answer
    return answer


def values(reply: object, name: str) -> np.ndarray:
    """The map of the explanation with this id."""
    (one,) = [one for one in replied(reply).explanations if one.id == name]
    assert isinstance(one.result, Attribution)
    return np.asarray(one.result.values_NCHW[0])
