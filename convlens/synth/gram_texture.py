"""Gram matrices of a layer's features, and how far two pictures' lie apart (Gatys et al. 2015, arXiv:1505.07376).

Texture from Gram matrices (Gatys et al. 2015): a new picture whose features go together as the source's do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convlens.errors import RequestError
from convlens.instrument import AveragePooling, PartialForward, require_eval
from convlens.models import Classifier
from convlens.synth.base import Job, Outcome, State, SynthesisRun, job
from convlens.synth.images import channels_last, middle_square, read_rgb, require_texture, resized, to_tensor, to_uint8
from convlens.synth.lbfgs import ResumableLBFGS
from convlens.synth.parameters import noise
from convlens.types import Bytes8
from convlens.visualization.layout import hstack


def gram(features_NCHW: Tensor) -> Tensor:
    """G = F Fᵀ / M of each row (N, C, C): M places, so that pictures of different sizes can be compared."""
    count, channels, height, width = features_NCHW.shape
    if features_NCHW.is_contiguous(memory_format=torch.channels_last):  # as the numbers lie, without a copy
        places = features_NCHW.permute(0, 2, 3, 1).reshape(count, height * width, channels)
        return places.transpose(1, 2) @ places / (height * width)
    flat = features_NCHW.flatten(2)
    return flat @ flat.transpose(1, 2) / (height * width)


class GramLoss:
    """Mean over layers of mean (G − G₀)² / mean G₀²: 0 at the source, about 1 where there is nothing in common."""

    def __init__(self, source: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        self._wanted = {layer: gram(features).detach() for layer, features in source.items()}
        self._weights = weights

    def __call__(self, found: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for layer, wanted in self._wanted.items():
            apart = ((gram(found[layer]) - wanted) ** 2).mean() / (wanted**2).mean().clamp_min(1e-30)
            parts.append(self._weights[layer] * apart)
        return torch.stack(parts).sum() / sum(self._weights.values())


_SMALLEST = 32


@job("texture")
@dataclass(frozen=True, kw_only=True)
class Texture(Job):
    """Match the Gram matrices of ``source`` at ``layers``, each normalised by its own size, from white noise.

    The source's middle square of ``source_side`` pixels is taken, resized from its shorter side. The texture has
    ``height`` × ``width`` pixels, of any size. ``scales`` begin smaller: at each, picture and source are half of the
    next, and the coarser result is the next one's start. ``pooling`` "average" replaces max pooling for the run.
    ``optimizer``: lbfgs, or adam at ``rate``. Pixels stay within the source's range of each colour.
    """

    source: str
    layers: tuple[str, ...] = ("conv_stem", "blocks.0.0", "blocks.1.0", "blocks.1.1", "blocks.2.0", "blocks.2.1")
    weights: tuple[float, ...] = ()
    source_side: int = 256
    height: int = 256
    width: int = 256
    scales: int = 2
    steps: int = 200
    pooling: str = "average"
    optimizer: str = "lbfgs"
    rate: float = 0.05

    def __post_init__(self) -> None:
        if not self.layers:
            raise RequestError("texture needs a layer or several", field="layers")
        if self.weights and len(self.weights) != len(self.layers):
            raise RequestError(f"{len(self.layers)} layers need as many weights", field="weights")
        if any(not weight > 0 for weight in self.weights):
            raise RequestError("weights should be above 0", field="weights")
        for name in ("source_side", "height", "width"):
            if not _SMALLEST <= getattr(self, name) <= 4096:
                raise RequestError(f"{name} should be from {_SMALLEST} to 4096, not {getattr(self, name)}", field=name)
        for name in ("steps", "scales"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} should be 1 or more, not {getattr(self, name)}", field=name)
        least = min(self.source_side, self.height, self.width)
        if least >> (self.scales - 1) < _SMALLEST:
            raise RequestError(
                f"{self.scales} scales of {least} pixels end below {_SMALLEST}; choose fewer", field="scales"
            )
        for name, known in (("pooling", ("average", "max")), ("optimizer", ("lbfgs", "adam"))):
            if getattr(self, name) not in known:
                raise RequestError(f"no {name} {getattr(self, name)!r}; there are: {', '.join(known)}", field=name)
        if not self.rate > 0:
            raise RequestError(f"rate should be above 0, not {self.rate}", field="rate")

    def inputs(self) -> tuple[str, ...]:
        return (self.source,)

    def begin(self, classifier: Classifier | None) -> TextureRun:
        if classifier is None:
            raise RequestError("texture needs a model; quilt and efros need none", field="model")
        return TextureRun(self, classifier)


class TextureRun(SynthesisRun):
    """Scale after scale, from coarse to fine."""

    blame = ("rate", "weights")

    def __init__(self, job: Texture, classifier: Classifier) -> None:
        require_eval(classifier.module)
        self._job, self._classifier = job, classifier
        self._source = middle_square(read_rgb(job.source, field="source"), job.source_side)
        require_texture(self._source)
        whole = to_tensor(self._source, classifier.spec, classifier.device)
        self._up_to = PartialForward(classifier.module, job.layers, whole)
        self._low, self._high = (edge(whole, (0, 2, 3), keepdim=True) for edge in (torch.amin, torch.amax))
        self._weights = dict(zip(job.layers, job.weights or (1.0,) * len(job.layers), strict=True))
        self.total = job.scales * job.steps
        self._first = self._last = float("nan")
        self._open(0, None)

    def step(self) -> Mapping[str, Tensor | float]:
        at, scale = self.done % self._job.steps, self.done // self._job.steps
        if at == 0 and scale > 0:
            self._open(scale, self._x)
        value = self._newton.step() if self._newton else self._descend()
        self._hold()
        self.done += 1
        return {"objective": value}

    def state_dict(self) -> State:
        moving = (
            self._newton.state_dict() if self._newton else {"x": self._leaf.detach(), "adam": self._adam.state_dict()}
        )
        return {"done": self.done, "moving": moving}

    def load_state_dict(self, state: State) -> None:
        self.done = state["done"]
        x = state["moving"]["x"].to(self._classifier.device)
        self._open((self.done - 1) // self._job.steps if self.done else 0, x)
        if self._newton:
            self._newton.load_state_dict(state["moving"])
        else:
            with torch.no_grad():
                self._leaf.copy_(x)
            self._adam.load_state_dict(state["moving"]["adam"])

    def snapshot(self) -> Bytes8:
        return to_uint8(self._x, self._classifier.spec)[0]

    def finish(self) -> Outcome:
        (found,) = to_uint8(self._x, self._classifier.spec)
        size = (self._job.height, self._job.width)
        start = self._noise(size, self._job.scales - 1)
        losses = {}
        end = to_tensor(found, self._classifier.spec, self._classifier.device)
        for name, x in (("noise", start), ("texture", end)):
            with torch.no_grad(), self._pools():
                losses[name] = float(self._loss(self._up_to(x)))
        facts: dict[str, Any] = {
            "gram_loss_of_noise": losses["noise"],
            "gram_loss": losses["texture"],
            "fell_by": losses["noise"] / max(losses["texture"], 1e-30),
        }
        return Outcome({"texture": found}, {"source-and-texture": hstack([self._source, found], gap=8)}, facts)

    # --- inside -------------------------------------------------------------------------------------------------

    @property
    def _x(self) -> Tensor:
        return self._newton.x.detach() if self._newton else self._leaf.detach()

    def _pools(self) -> contextlib.AbstractContextManager[object]:
        return AveragePooling() if self._job.pooling == "average" else contextlib.nullcontext()

    def _size(self, scale: int) -> tuple[int, int]:
        halved = self._job.scales - 1 - scale
        return self._job.height >> halved, self._job.width >> halved

    def _open(self, scale: int, coarser: Tensor | None) -> None:
        """Begin a scale, from noise or from what the coarser one gave."""
        job, spec, device = self._job, self._classifier.spec, self._classifier.device
        side = job.source_side >> (job.scales - 1 - scale)
        source = to_tensor(resized(self._source, (side, side)), spec, device)
        with torch.no_grad(), self._pools():
            self._loss = GramLoss(self._up_to(source), self._weights)
        size = self._size(scale)
        if coarser is None:
            x = self._noise(size, scale)
        elif tuple(coarser.shape[2:]) == size:
            x = coarser.clone()
        else:
            x = torch.nn.functional.interpolate(coarser, size=size, mode="bicubic", align_corners=False)
        self._newton = ResumableLBFGS(x, self._value) if job.optimizer == "lbfgs" else None
        self._leaf = x.detach().clone().requires_grad_()
        self._adam = torch.optim.Adam([self._leaf], lr=job.rate)

    def _noise(self, size: tuple[int, int], scale: int) -> Tensor:
        """White, of the source's mean and spread of each colour."""
        whole = to_tensor(self._source, self._classifier.spec, self._classifier.device)
        mean, spread = whole.mean((2, 3), keepdim=True), whole.std((2, 3), keepdim=True)
        generator = torch.Generator().manual_seed(self._job.seed * 100 + scale)
        return (mean + spread * noise((1, whole.shape[1], *size), generator, whole.device)).clamp(self._low, self._high)

    def _value(self, x_NCHW: Tensor) -> Tensor:
        with self._pools():
            found = self._up_to(channels_last(x_NCHW))
        return self._loss(found)

    def _descend(self) -> Tensor:
        with torch.enable_grad():
            value = self._value(self._leaf)
        (self._leaf.grad,) = torch.autograd.grad(value, self._leaf)
        self._adam.step()
        return value.detach()

    def _hold(self) -> None:
        """Within the source's range."""
        x = self._newton.x if self._newton else self._leaf
        with torch.no_grad():
            x.copy_(torch.maximum(torch.minimum(x, self._high), self._low))
