"""Texture synthesis by Gram matrices (Gatys et al. 2015, arXiv:1505.07376).

The new image's features of a network's layers have the correlations of the source's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convlens.errors import RequestError
from convlens.instrument import AveragePooling, PartialForward, in_format_of, require_eval
from convlens.models import Classifier
from convlens.synth.base import (
    Job,
    Outcome,
    State,
    SynthesisRun,
    job,
    require_at_least,
    require_between,
    require_choice,
    require_positive,
)
from convlens.synth.images import beside, center_square, read_rgb, require_texture, resized, shown, to_tensor, to_uint8
from convlens.synth.lbfgs import ResumableLBFGS
from convlens.synth.parameters import noise
from convlens.synth.step_gradient import StepGradient
from convlens.synth.trunk import texture_layers
from convlens.types import Bytes8

_MIN_SIDE = 32  # pixels, also of the coarsest scale


def gram(features_NCHW: Tensor) -> Tensor:
    """The Gram matrix G = F Fᵀ / M of each row (N, C, C).

    Divided by M, the number of places, so that images of different sizes can be compared.
    """
    count, channels, height, width = features_NCHW.shape
    if features_NCHW.is_contiguous(memory_format=torch.channels_last):  # in memory order, without a copy
        places = features_NCHW.permute(0, 2, 3, 1).reshape(count, height * width, channels)
        return places.transpose(1, 2) @ places / (height * width)
    flat = features_NCHW.flatten(2)
    return flat @ flat.transpose(1, 2) / (height * width)


class GramLoss:
    """Weighted mean over layers of mean (G − G₀)² / mean G₀²: 0 at the source, about 1 where nothing is in common.

    Divided by G₀², layers of any size and strength count alike at weight 1.
    """

    def __init__(self, source: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        self._targets = {layer: gram(features).detach() for layer, features in source.items()}
        self._weights = weights

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for layer, target in self._targets.items():
            error = ((gram(features[layer]) - target) ** 2).mean() / (target**2).mean().clamp_min(1e-30)
            parts.append(self._weights[layer] * error)
        return torch.stack(parts).sum() / sum(self._weights.values())


@job("texture")
@dataclass(frozen=True, kw_only=True)
class Texture(Job):
    """Match the Gram matrices of ``source`` at ``layers``, with ``weights`` (1 by default), starting from white noise.

    Without ``layers`` they are the first and the last at each resolution down to an eighth (``trunk.texture_layers``).
    The source is resized so that its shorter side is ``source_side`` pixels; its middle square is used. The texture has
    ``height`` × ``width`` pixels, of any size. With several ``scales`` the first are smaller: each has half the size of
    the next, of texture and source, and its result is the next one's start. ``pooling`` "average" replaces max pooling
    for the run. ``optimizer``: "lbfgs", or "adam" at ``rate``. Pixels stay within the source's range of each colour.
    """

    source: str
    layers: tuple[str, ...] = ()
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
        if self.weights and not self.layers:
            raise RequestError("weights are those of layers; name these", field="layers")
        if self.weights and len(self.weights) != len(self.layers):
            raise RequestError(f"{len(self.layers)} layers need as many weights", field="weights")
        if any(not weight > 0 for weight in self.weights):
            raise RequestError("weights should be above 0", field="weights")
        require_between(_MIN_SIDE, 4096, self, "source_side", "height", "width")
        require_at_least(1, self, "steps", "scales")
        side = min(self.source_side, self.height, self.width)
        if side >> (self.scales - 1) < _MIN_SIDE:
            raise RequestError(
                f"{self.scales} scales of {side} pixels end below {_MIN_SIDE}; choose fewer", field="scales"
            )
        require_choice(("average", "max"), self, "pooling")
        require_choice(("lbfgs", "adam"), self, "optimizer")
        require_positive(self, "rate")

    def inputs(self) -> tuple[str, ...]:
        return (self.source,)

    def resolved(self, classifier: Classifier | None) -> Texture:
        return self if self.layers else replace(self, layers=texture_layers(self._require_model(classifier)))

    def begin(self, classifier: Classifier | None) -> TextureRun:
        return TextureRun(self.resolved(classifier), self._require_model(classifier))

    def _require_model(self, classifier: Classifier | None) -> Classifier:
        return self.require_model(classifier, "; quilt and efros need none")


class TextureRun(SynthesisRun):
    """Scale after scale, from coarse to fine."""

    blame = ("rate", "weights")

    def __init__(self, job: Texture, classifier: Classifier) -> None:
        require_eval(classifier.module)
        self._job, self._classifier = job, classifier
        self._source = center_square(read_rgb(job.source, field="source"), job.source_side)
        require_texture(self._source)
        source = to_tensor(self._source, classifier.spec, classifier.device)
        self._up_to = PartialForward(classifier.module, job.layers, source)
        self._low, self._high = (bound(source, (0, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
        self._weights = dict(zip(job.layers, job.weights or (1.0,) * len(job.layers), strict=True))
        self.total = job.scales * job.steps
        self._begin_scale(0, None)

    def step(self) -> Mapping[str, Tensor | float]:
        scale, step = divmod(self.done, self._job.steps)
        if step == 0 and scale > 0:
            self._begin_scale(scale, self._x)
        loss = self._lbfgs.step() if self._lbfgs else self._descend()
        self._clip()
        self.done += 1
        return {"objective": loss}

    def state_dict(self) -> State:
        if self._lbfgs:
            return {"done": self.done, "moving": self._lbfgs.state_dict()}
        return {"done": self.done, "moving": {"x": self._pixels.detach(), "adam": self._adam.state_dict()}}

    def load_state_dict(self, state: State) -> None:
        self.done = state["done"]
        x = state["moving"]["x"].to(self._classifier.device)
        self._begin_scale((self.done - 1) // self._job.steps if self.done else 0, x)
        if self._lbfgs:
            self._lbfgs.load_state_dict(state["moving"])
        else:
            with torch.no_grad():
                self._pixels.copy_(x)
            self._adam.load_state_dict(state["moving"]["adam"])

    def snapshot(self) -> Bytes8:
        spec = self._classifier.spec
        return shown(to_uint8(self._x, spec), spec)[0]

    def finish(self) -> Outcome:
        """The texture, and the loss of the 8-bit image beside that of noise of its size."""
        texture = self.snapshot()
        noise_NCHW = self._noise((self._job.height, self._job.width), self._job.scales - 1)
        texture_NCHW = to_tensor(texture, self._classifier.spec, self._classifier.device)
        with torch.no_grad(), self._pooling():
            noise_loss, texture_loss = (float(self._loss(self._up_to(x))) for x in (noise_NCHW, texture_NCHW))
        facts: dict[str, Any] = {
            "gram_loss_of_noise": noise_loss,
            "gram_loss": texture_loss,
            "fell_by": noise_loss / max(texture_loss, 1e-30),
        }
        figure = beside([self._source, texture], ["sample", "texture made from it"])
        return Outcome({"texture": texture}, {"source-and-texture": figure}, facts)

    @property
    def _x(self) -> Tensor:
        return self._lbfgs.x.detach() if self._lbfgs else self._pixels.detach()

    def _pooling(self) -> contextlib.AbstractContextManager[object]:
        return AveragePooling() if self._job.pooling == "average" else contextlib.nullcontext()

    def _size(self, scale: int) -> tuple[int, int]:
        halved = self._job.scales - 1 - scale
        return self._job.height >> halved, self._job.width >> halved

    def _begin_scale(self, scale: int, coarser: Tensor | None) -> None:
        """From the result of the coarser scale, or from noise where there is none."""
        job, spec, device = self._job, self._classifier.spec, self._classifier.device
        side = job.source_side >> (job.scales - 1 - scale)
        source = to_tensor(resized(self._source, (side, side)), spec, device)
        with torch.no_grad(), self._pooling():
            self._loss = GramLoss(self._up_to(source), self._weights)
        size = self._size(scale)
        if coarser is None:
            x = self._noise(size, scale)
        elif tuple(coarser.shape[2:]) == size:
            x = coarser.clone()
        else:
            x = torch.nn.functional.interpolate(coarser, size=size, mode="bicubic", align_corners=False)
        self._gradient = StepGradient(self._value)
        self._lbfgs = ResumableLBFGS(x, self._gradient) if job.optimizer == "lbfgs" else None
        self._pixels = x.detach().clone().requires_grad_()
        self._adam = torch.optim.Adam([self._pixels], lr=job.rate)

    def _noise(self, size: tuple[int, int], scale: int) -> Tensor:
        """White noise of the source's mean and standard deviation of each colour."""
        source = to_tensor(self._source, self._classifier.spec, self._classifier.device)
        mean, std = source.mean((2, 3), keepdim=True), source.std((2, 3), keepdim=True)
        generator = torch.Generator().manual_seed(self._job.seed * 100 + scale)
        white = noise((1, source.shape[1], *size), generator, source.device)
        return (mean + std * white).clamp(self._low, self._high)

    def _value(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        with self._pooling():
            features = self._up_to(in_format_of(self._classifier.module, x_NCHW))
        loss = self._loss(features)
        return loss, loss

    def _descend(self) -> Tensor:
        loss, _, self._pixels.grad = self._gradient(self._pixels)
        self._adam.step()
        return loss

    def _clip(self) -> None:
        """To the source's range: the paper's box bounds, which torch's optimizers lack."""
        x = self._lbfgs.x if self._lbfgs else self._pixels
        with torch.no_grad():
            torch.clamp(x, self._low, self._high, out=x)
