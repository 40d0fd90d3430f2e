"""Adversarial (fooling) images: the smallest change that makes a network predict another class.

Szegedy et al. 2013 (arXiv:1312.6199) pose the problem; the method is DDN, decoupled direction and norm (Rony et al.
2019, arXiv:1811.09600).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from convlens import image
from convlens.errors import RequestError
from convlens.image.preprocess import resize_plan
from convlens.instrument import require_eval
from convlens.models import Classifier, find_class
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
from convlens.synth.images import Ranking, rank_classes, read_rgb, resized, to_tensor, top_classes
from convlens.types import Bytes8, Floats, ModelSpec
from convlens.visualization.layout import add_margin, hstack, text_image, vstack

_GAMMA = 0.05  # by which share the radius grows or shrinks in a step
_VISIBLE = 96  # levels from mid grey that the figure amplifies all but the largest hundredth of the differences to
_WIDEST = 1200  # pixels, of a figure in one row
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L


@job("fool")
@dataclass(frozen=True, kw_only=True)
class Fool(Job):
    """Change ``picture`` as little as possible so that it is classified as ``target``.

    The size of a change is its ``norm``: "l2", or "linf", the largest change of any value. Each step follows the
    gradient, then projects onto the sphere whose radius shrinks while the image fools and grows while it does not.
    Every step's image is rounded to 8 bits and preprocessed as any image is before the network judges it, so the PNG
    that is written fools as well.
    ``margin`` is by how much the target's logit must lead. ``bound`` is the largest change allowed, in levels of 255:
    for linf of any value, for l2 the root mean square. ``side`` resizes the shorter side first. ``rate`` multiplies the
    step; 0 is 1.
    """

    picture: str
    target: int | str
    norm: str = "l2"
    steps: int = 150
    rate: float = 0.0
    margin: float = 0.5
    bound: float | None = None
    side: int | None = None

    def __post_init__(self) -> None:
        require_choice(("l2", "linf"), self, "norm")
        require_at_least(1, self, "steps")
        require_at_least(0, self, "margin", "rate")
        if self.bound is not None:
            require_positive(self, "bound")
        require_between(32, 4096, self, "side")

    def inputs(self) -> tuple[str, ...]:
        return (self.picture,)

    def begin(self, classifier: Classifier | None) -> FoolRun:
        return FoolRun(self, self.require_model(classifier))


class FoolRun(SynthesisRun):
    """``best`` is the least changed 8-bit image that fools, once there is one."""

    blame = ("rate",)

    def __init__(self, job: Fool, classifier: Classifier) -> None:
        require_eval(classifier.module)
        self._job, self._classifier = job, classifier
        original = read_rgb(job.picture, field="picture")
        if job.side is not None:
            shorter = min(original.shape[:2])
            height, width = (round(length * job.side / shorter) for length in original.shape[:2])
            original = resized(original, (height, width))
        self._original = original
        self._target = find_class(classifier.spec.labels, job.target)
        self._preprocessing = _Preprocessing(original, classifier)
        self.before = self._ranking(original)
        if self.before[0][0] == self._target:
            raise RequestError(f"the picture is {self.before[0][1]!r} already; choose another target", field="target")
        self._levels = torch.from_numpy(original.astype(np.float32)).permute(2, 0, 1)[None].to(classifier.device)
        self._change = torch.zeros_like(self._levels)
        self._radius = 1.0  # in levels of 255: the root mean square of the change, or its largest value
        self.best: Bytes8 | None = None
        self._best_size = math.inf
        self.total = job.steps

    def step(self) -> Mapping[str, Tensor | float]:
        image_HWC = self._rounded()
        x_NCHW = self._preprocessing.forward(image_HWC).requires_grad_()
        with torch.enable_grad():
            (logits_K,) = self._classifier.module(x_NCHW)
            others_K = torch.cat([logits_K[: self._target], logits_K[self._target + 1 :]])
            lead = logits_K[self._target] - others_K.max()
            # Not the lead: the log-probability also gives a direction while the target is far behind.
            objective = logits_K.log_softmax(0)[self._target]
        (grad,) = torch.autograd.grad(objective, x_NCHW)
        margin, size = float(lead.detach()), self._size(image_HWC)
        fools = margin > self._job.margin
        if fools and size < self._best_size and size <= (self._job.bound or math.inf):
            self.best, self._best_size = image_HWC, size
        self._update(self._preprocessing.backward(grad), fools=fools)
        self.done += 1
        return {"objective": objective.detach(), "lead": margin, "change": size}

    def state_dict(self) -> State:
        best = None if self.best is None else torch.from_numpy(self.best.copy())
        state = {"done": self.done, "change": self._change, "radius": self._radius}
        return {**state, "best": best, "size": self._best_size}

    def load_state_dict(self, state: State) -> None:
        self.done, self._radius, self._best_size = state["done"], state["radius"], state["size"]
        self._change = state["change"].to(self._levels)
        self.best = None if state["best"] is None else state["best"].numpy()

    def snapshot(self) -> Bytes8:
        return self._rounded()

    def finish(self) -> Outcome:
        if self.best is None:
            options = "bound, steps" if self._job.bound else "steps"
            raise RequestError(
                f"no picture within the bound was taken for {self._classifier.spec.labels[self._target]!r} in "
                f"{self.total} steps; raise {options}, or choose a nearer target",
                field="bound" if self._job.bound else "steps",
            )
        after = self._ranking(self.best)
        difference = self.best.astype(np.int64) - self._original
        mean_square = float((difference**2).mean())
        facts: dict[str, Any] = {
            "target": self._classifier.spec.labels[self._target],
            "before": top_classes(self.before),
            "after": top_classes(after),
            "psnr_db": 10 * math.log10(255**2 / mean_square),
            "rms_levels": math.sqrt(mean_square),
            "largest_change_levels": int(np.abs(difference).max()),
            "values_changed": float((difference != 0).mean()),
        }
        figure = _figure(self._original, self.best, self.before, after, facts["psnr_db"])
        return Outcome({"fooled": self.best}, {"figure": figure}, facts)

    def _rounded(self) -> Bytes8:
        values = (self._levels + self._change).round().clamp(0, 255)
        return values[0].permute(1, 2, 0).to("cpu", torch.uint8).numpy()

    def _size(self, image_HWC: Bytes8) -> float:
        difference = image_HWC.astype(np.float64) - self._original
        return float(np.sqrt((difference**2).mean()) if self._job.norm == "l2" else np.abs(difference).max())

    def _update(self, grad_NCHW: Tensor, *, fools: bool) -> None:
        """A step along the gradient, at a rate that falls to 0.01 along a cosine, then onto the new radius."""
        rate = (self._job.rate or 1.0) * (0.01 + 0.99 * (1 + math.cos(math.pi * self.done / self.total)) / 2)
        # Below a quarter of a level nearly every value rounds back to the original's.
        self._radius = max(self._radius * (1 - _GAMMA if fools else 1 + _GAMMA), 0.25)
        if self._job.norm == "linf":
            self._change = (self._change + rate * grad_NCHW.sign()).clamp(-self._radius, self._radius)
            return
        self._change = self._change + rate * grad_NCHW / _rms(grad_NCHW)
        self._change = self._change * (self._radius / _rms(self._change))

    def _ranking(self, image_HWC: Bytes8) -> Ranking:
        return rank_classes(self._classifier, self._preprocessing.forward(image_HWC))


class _Preprocessing:
    """The network's input of an image, and gradients taken back to the image's own pixels.

    Forward by Pillow, to the last bit as for any image. Backward by the transpose of torch's antialiased resizing,
    because Pillow's has none: the two differ by rounding (and where a model asks for Lanczos).
    """

    def __init__(self, original: Bytes8, classifier: Classifier) -> None:
        self._spec, self._device = classifier.spec, classifier.device
        self._height, self._width = original.shape[:2]
        std = torch.tensor(classifier.spec.std, device=self._device)[:, None, None]
        self._per_level = 1 / (255 * std)
        if classifier.spec.channels not in (1, 3):
            raise RequestError(
                f"{classifier.spec.name} takes {classifier.spec.channels} channels; a fooling picture is an RGB image, "
                "for a network of colours or of grey"
            )

    def forward(self, image_HWC: Bytes8) -> Tensor:
        view_HWC, _ = image.view(Image.fromarray(image_HWC), self._spec)
        return to_tensor(view_HWC, self._spec, self._device)

    def backward(self, grad_NCHW: Tensor) -> Tensor:
        """The gradient by the image's pixels (1, 3, H, W), in levels of 255."""
        # The resizing is linear, so its gradient is the same at any image: zeros do.
        zeros = torch.zeros(1, grad_NCHW.shape[1], self._height, self._width, device=self._device, requires_grad=True)
        with torch.enable_grad():
            view = _cropped(zeros, self._spec)
        (grad,) = torch.autograd.grad(view, zeros, grad_NCHW * self._per_level)
        # What a network of one channel sees is the luma of the three.
        return grad if grad.shape[1] == 3 else grad * torch.tensor(_LUMA, device=grad.device)[:, None, None]


def _cropped(x_NCHW: Tensor, spec: ModelSpec) -> Tensor:
    """Resized, and cropped or bordered (by zeros), as ``convlens.image.view`` does."""
    height, width = x_NCHW.shape[2:]
    plan = resize_plan((width, height), spec)
    size = plan.size[1], plan.size[0]
    # torch has no Lanczos; bicubic is the nearest to it
    mode = "bicubic" if spec.interpolation in ("bicubic", "lanczos") else "bilinear"
    if size != tuple(x_NCHW.shape[2:]):
        x_NCHW = functional.interpolate(x_NCHW, size=size, mode=mode, align_corners=False, antialias=True)
    bottom, right = plan.top + spec.input_size[0], plan.left + spec.input_size[1]
    # A negative padding cuts off.
    return functional.pad(x_NCHW, (-plan.left, right - size[1], -plan.top, bottom - size[0]))


def _rms(x: Tensor) -> Tensor:
    return (x**2).mean().sqrt().clamp_min(1e-30)


def _figure(before: Bytes8, after: Bytes8, before_ranking: Ranking, after_ranking: Ranking, psnr: float) -> Bytes8:
    """Original, adversarial image, difference, amplified difference, with both predictions."""
    difference: Floats = after.astype(np.float64) - before
    factor = amplification(difference)
    (_, label_before, p_before, _), (_, label_after, p_after, _) = before_ranking[0], after_ranking[0]
    tiles = [
        (before, f"{label_before}, p = {p_before:.3f}"),
        (after, f"{label_after}, p = {p_after:.3f}"),
        (_about_grey(difference), f"difference, PSNR {psnr:.1f} dB"),
        (_about_grey(factor * difference), f"difference × {factor}"),
    ]
    captioned = [vstack([tile, text_image(caption, size=14, width=tile.shape[1])], gap=4) for tile, caption in tiles]
    # Two rows where one would be so wide that its letters cannot be read once it fits a page.
    columns = len(tiles) if len(tiles) * before.shape[1] <= _WIDEST else 2
    rows = [hstack(captioned[first : first + columns], gap=8) for first in range(0, len(tiles), columns)]
    return add_margin(vstack(rows, gap=8), margin=8)


def amplification(difference_HWC: Floats) -> int:
    """The factor of 10, 20, 50, 100, … by which a difference in levels is drawn to be seen, the largest that fits."""
    # Ten times a change of half a level is still grey to the eye.
    size = float(np.quantile(np.abs(difference_HWC[difference_HWC != 0]), 0.99)) if difference_HWC.any() else 1.0
    fitting = [m * 10**n for n in (1, 2) for m in (1, 2, 5) if m * 10**n * size <= _VISIBLE]
    return max(fitting, default=10)


def _about_grey(difference: Floats) -> Bytes8:
    return np.asarray(np.clip(np.rint(127.5 + difference), 0, 255), np.uint8)
