"""Small networks whose answers can be added up by hand, or that hold one difficulty each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from convlens.models import Classifier
from convlens.types import ModelSpec, Neighbour

CPU = torch.device("cpu")
Activation = Callable[[Tensor], Tensor]


def classifier(
    module: nn.Module, *, classes: int, crop: int = 8, embedding_layer: str = "head", gradcam_layer: str = "first"
) -> Classifier:
    """``module`` as it would come from load(), with its own dtype kept."""
    spec = ModelSpec(
        name="test:net",
        crop=crop,
        resize=crop,
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        labels=tuple(f"class {index}" for index in range(classes)),
        embedding_layer=embedding_layer,
        gradcam_layer=gradcam_layer,
        first_convolution="first",
        weights_sha256="0" * 64,
    )
    return Classifier(module.eval(), spec, CPU, "test:net")


# ---- added up by hand


class ByHand(nn.Module):
    """Two pixels' worth of channels a, b -> three units -> two classes, and nothing but small whole numbers.

    units   u = relu(a + b), v = relu(a − b), w = relu(−a)
    logits  u − v + 2w and −u + v − w
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 1, bias=False)
        self.first.weight.data = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0]])[:, :, None, None]
        self.activation = activation
        self.head = nn.Linear(3, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0, -1.0, 2.0], [-1.0, 1.0, -1.0]])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.activation(self.first(x_NCHW)).flatten(1))


def pair(a: float, b: float) -> Tensor:
    """The input of ByHand."""
    return torch.tensor([a, b]).reshape(1, 2, 1, 1)


class Linear(nn.Module):
    """logits = W x + b: every gradient is W. (For 3 × size × size pictures.)"""

    def __init__(self, size: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Identity()
        self.head = nn.Linear(3 * size * size, classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.first(x_NCHW).flatten(1))


# ---- every spelling of ReLU


def through_a_view(x: Tensor) -> Tensor:
    """In place on a view; what is returned is the base."""
    x.view(len(x), -1).relu_()
    return x


RELUS: dict[str, Activation] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "method relu": lambda x: x.relu(),
    "method relu_": lambda x: x.relu_(),
    "relu_ of a view": through_a_view,
    "clamp(min=0)": lambda x: x.clamp(min=0),
    "clamp(0)": lambda x: torch.clamp(x, 0),
    "clamp_(min=0.0)": lambda x: x.clamp_(min=0.0),
    "clamp_min": lambda x: x.clamp_min(0),
    "torch.clamp_min_": lambda x: torch.clamp_min_(x, 0.0),
    "clip(0, None)": lambda x: torch.clip(x, 0, None),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "nn.Threshold": nn.Threshold(0.0, 0.0),
    "threshold in place": lambda x: F.threshold(x, 0.0, 0.0, inplace=True),
}
RELU6S: dict[str, Activation] = {
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6 in place": nn.ReLU6(inplace=True),
    "F.relu6": F.relu6,
    "F.relu6 in place": lambda x: F.relu6(x, inplace=True),
    "nn.Hardtanh(0, 6)": nn.Hardtanh(0.0, 6.0),
    "nn.Hardtanh(0, 6) in place": nn.Hardtanh(0.0, 6.0, inplace=True),
    "F.hardtanh by name": lambda x: F.hardtanh(x, min_val=0.0, max_val=6.0),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0.0, 6.0),
    "clamp(0, 6)": lambda x: x.clamp(0, 6),
    "clamp(min=0, max=6)": lambda x: torch.clamp(x, min=0, max=6),
    "clip_": lambda x: x.clip_(0.0, 6.0),
}


class Mixed(nn.Module):
    """Every difficulty of ReLU networks at once: a reused module, in place, functions, methods, views, ReLU6, gates."""

    relu_calls = 11

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.block = PreActivation(16)
        self.gate = SqueezeExcite(16)
        self.head = nn.Linear(16, 4)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)  # keeps the signal alive through all the clipping

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x_NCHW)))
        x = self.relu(self.second(x) - 0.1)
        x = F.max_pool2d(x, 2)
        x = self.third(x)
        F.relu(x[:, 1:], inplace=True)
        x = self.block(self.gate(x))
        x = torch.relu(x) - 0.5 * (-x).relu()
        x = F.relu6(x * 8.0)
        x = F.hardtanh(x - 1.0, 0.0, 3.0, inplace=True)
        x = (x - 0.3).clamp_(min=0)
        return self.head(x.mean((2, 3)))


class PreActivation(nn.Module):
    """He et al. 2016: the tensor before the ReLU also runs along the skip, where no rule may touch it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_2(F.relu(self.conv_1(F.relu(self.norm(x)))))


class SqueezeExcite(nn.Module):
    """A gate, but from the whole picture and through weights: no activation of its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 2, 1)
        self.up = nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class Sequential(nn.Module):
    """first -> middle -> mean over space -> head, for pictures of three channels."""

    def __init__(self, middle: nn.Module, *, channels: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.middle = middle
        self.head = nn.Linear(channels, classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.middle(self.first(x_NCHW)).mean((2, 3)))


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Activation) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# ---- for failures


class Fuse(nn.Module):
    """Passes its input on, until told to blow: on the n-th forward through it (1 is the next), or in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.state = {"forwards": 0, "blow_at": 0, "blow_in_backward": 0}
        self.box = [self.state]  # a list, so that copies of the module share it

    def arm(self, *, forward: int = 0, backward: bool = False) -> None:
        self.box[0].update(forwards=0, blow_at=forward, blow_in_backward=int(backward))

    def forward(self, x: Tensor) -> Tensor:
        state = self.box[0]
        state["forwards"] += 1
        if state["forwards"] == state["blow_at"]:
            raise Blown
        if state["blow_in_backward"] and x.requires_grad:
            x = x * 1.0
            x.register_hook(_blow)
        return x


class Blown(Exception):
    """What a Fuse raises; no library knows it."""


def _blow(_: Tensor) -> None:
    raise Blown


class StubGallery:
    """Answers every query with one neighbour, whose distance is the embedding's length."""

    def require_weights(self, weights_sha256: str) -> None:
        pass

    def query(self, embedding_ND: Any, *, k: int) -> tuple[tuple[Neighbour, ...], ...]:
        return tuple((Neighbour("one", "class 0", float((row**2).sum() ** 0.5)),) * k for row in embedding_ND)


# ---- for real architectures


def perturbed(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """A copy in float64 and eval mode whose normalisation layers are no identities, so that nothing cancels by luck."""
    generator = torch.Generator().manual_seed(seed)
    module = copy.deepcopy(module).double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                (part.weight, 0.5, 3.0),
                (part.bias, -0.5, 0.5),
                (part.running_mean, -0.1, 0.1),
                (part.running_var, 0.5, 1.5),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return module


def photograph(file: str, spec: ModelSpec) -> Tensor:
    """A photograph of scikit-image's wheel as the network wants it, by PIL and nothing of ours: (1, 3, H, W)."""
    picture = Image.open(Path(skimage.data.__file__).parent / file).convert("RGB")
    share = spec.resize / min(picture.size)
    picture = picture.resize([round(side * share) for side in picture.size], Image.Resampling.BICUBIC)
    left, top = ((side - spec.crop) // 2 for side in picture.size)
    pixels_HWC = np.asarray(picture.crop((left, top, left + spec.crop, top + spec.crop)), dtype=np.float32) / 255
    return torch.from_numpy((pixels_HWC - spec.mean) / spec.std).permute(2, 0, 1)[None].float()


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal noise: no ties, no exact zeros."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """What ``make`` makes, in float64 and eval mode, the same every time; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double().eval()


def relative_error(found: Any, wanted: Any) -> float:
    """The largest difference over the largest wanted magnitude."""
    found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
    assert found.shape == wanted.shape, f"{found.shape} is not {wanted.shape}"
    return float((found - wanted).abs().max() / wanted.abs().max())
