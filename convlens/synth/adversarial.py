"""Fooling images: the smallest change that makes a network see another class (Szegedy et al. 2013; DDN, Rony 2019)."""

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
from convlens.instrument import require_eval
from convlens.models import Classifier, find_class
from convlens.synth.base import Job, Outcome, State, SynthesisRun, job
from convlens.synth.images import read_rgb, resized, to_tensor, top_classes
from convlens.types import Bytes8, Floats, ModelSpec
from convlens.visualization.layout import add_margin, hstack, text_image, vstack

_GAMMA = 0.05  # how fast the allowed change grows and shrinks
_AMPLIFIED = 10


@job("fool")
@dataclass(frozen=True, kw_only=True)
class Fool(Job):
    """Change ``picture`` as little as possible so that it is classified as ``target``.

    Small is by ``norm``: "l2", or "linf", the largest change of any value. The change is sought by decoupled direction
    and norm (Rony et al. 2019, arXiv:1811.09600): a step along the gradient, then onto the sphere whose radius shrinks
    while the picture fools and grows while it does not. Every step's picture is rounded to 8 bits, and what counts is
    what the network says of that, prepared as any picture is: so the PNG that is written fools whoever is given it.
    ``margin`` is by how much the target's logit must lead. ``bound`` is the largest change allowed, in levels of 255:
    of linf of any value, of l2 the root of the mean square. ``side`` resizes the picture's shorter side first.
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
        if self.norm not in ("l2", "linf"):
            raise RequestError(f"no norm {self.norm!r}; there are: l2, linf", field="norm")
        if self.steps < 1:
            raise RequestError(f"steps should be 1 or more, not {self.steps}", field="steps")
        for name, number in (("margin", self.margin), ("rate", self.rate)):
            if not number >= 0:
                raise RequestError(f"{name} should be 0 or more, not {number}", field=name)
        if self.bound is not None and not self.bound > 0:
            raise RequestError(f"bound should be above 0, not {self.bound}", field="bound")
        if self.side is not None and not 32 <= self.side <= 4096:
            raise RequestError(f"side should be from 32 to 4096, not {self.side}", field="side")

    def inputs(self) -> tuple[str, ...]:
        return (self.picture,)

    def begin(self, classifier: Classifier | None) -> FoolRun:
        if classifier is None:
            raise RequestError("fool needs a model", field="model")
        return FoolRun(self, classifier)


class FoolRun(SynthesisRun):
    """``best`` is the least changed 8-bit picture that fools, once there is one."""

    blame = ("rate",)

    def __init__(self, job: Fool, classifier: Classifier) -> None:
        require_eval(classifier.module)
        self._job, self._classifier = job, classifier
        picture = read_rgb(job.picture, field="picture")
        if job.side is not None:
            shorter = min(picture.shape[:2])
            height, width = (round(length * job.side / shorter) for length in picture.shape[:2])
            picture = resized(picture, (height, width))
        self._original = picture
        self._target = find_class(classifier.spec.labels, job.target)
        self._seen = _Seen(picture, classifier)
        self.before = self._ranked(picture)
        if self.before[0][0] == self._target:
            raise RequestError(f"the picture is {self.before[0][1]!r} already; choose another target", field="target")
        self._plain = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None].to(classifier.device)
        self._change = torch.zeros_like(self._plain)
        self._radius = 1.0  # levels: of the root mean square, or of the largest value
        self.best: Bytes8 | None = None
        self._best_size = math.inf
        self.total = job.steps

    def step(self) -> Mapping[str, Tensor | float]:
        picture = self._rounded()
        x_NCHW = self._seen.by_network(picture).requires_grad_()
        with torch.enable_grad():
            (logits_K,) = self._classifier.module(x_NCHW)
            others_K = torch.cat([logits_K[: self._target], logits_K[self._target + 1 :]])
            lead = logits_K[self._target] - others_K.max()
            # By the log-probability, which also says where to go while the target is far behind.
            total = logits_K.log_softmax(0)[self._target]
        (grad,) = torch.autograd.grad(total, x_NCHW)
        led, size = float(lead.detach()), self._size(picture)
        if led > self._job.margin and size < self._best_size and size <= (self._job.bound or math.inf):
            self.best, self._best_size = picture, size
        self._move(self._seen.back(grad), fools=led > self._job.margin)
        self.done += 1
        return {"objective": total.detach(), "lead": led, "change": size}

    def state_dict(self) -> State:
        best = None if self.best is None else torch.from_numpy(self.best.copy())
        return {
            "done": self.done,
            "change": self._change,
            "radius": self._radius,
            "best": best,
            "size": self._best_size,
        }

    def load_state_dict(self, state: State) -> None:
        self.done, self._radius, self._best_size = state["done"], state["radius"], state["size"]
        self._change = state["change"].to(self._plain)
        self.best = None if state["best"] is None else state["best"].numpy()

    def snapshot(self) -> Bytes8:
        return self._rounded()

    def finish(self) -> Outcome:
        if self.best is None:
            wider = "bound, steps" if self._job.bound else "steps"
            raise RequestError(
                f"no picture within the bound was taken for {self._classifier.spec.labels[self._target]!r} in "
                f"{self.total} steps; raise {wider}, or choose a nearer target",
                field="bound" if self._job.bound else "steps",
            )
        after = self._ranked(self.best)
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

    # --- inside -------------------------------------------------------------------------------------------------

    def _rounded(self) -> Bytes8:
        values = (self._plain + self._change).round().clamp(0, 255)
        return values[0].permute(1, 2, 0).to("cpu", torch.uint8).numpy()

    def _size(self, picture: Bytes8) -> float:
        difference = picture.astype(np.float64) - self._original
        return float(np.sqrt((difference**2).mean()) if self._job.norm == "l2" else np.abs(difference).max())

    def _move(self, grad_NCHW: Tensor, *, fools: bool) -> None:
        """A step along the gradient, of a size that falls along a cosine, then onto the new radius."""
        share = self.done / self.total
        rate = (self._job.rate or 1.0) * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
        self._radius = max(self._radius * (1 - _GAMMA if fools else 1 + _GAMMA), 0.25)
        if self._job.norm == "linf":
            self._change = (self._change + rate * grad_NCHW.sign()).clamp(-self._radius, self._radius)
            return
        self._change = self._change + rate * grad_NCHW / _rms(grad_NCHW)
        self._change = self._change * (self._radius / _rms(self._change))

    def _ranked(self, picture: Bytes8) -> list[tuple[int, str, float, float]]:
        labels = self._classifier.spec.labels
        with torch.no_grad():
            (logits_K,) = self._classifier.module(self._seen.by_network(picture)).double().cpu()
        probability_K = logits_K.softmax(0)
        order = logits_K.argsort(descending=True, stable=True).tolist()
        return [(k, labels[k], float(probability_K[k]), float(logits_K[k])) for k in order]


class _Seen:
    """What the network sees of a picture, as for any picture; and gradients taken back to the picture's own pixels.

    Forward by Pillow, to the last bit. Back by the transpose of torch's resizing, which is Pillow's but for rounding.
    """

    def __init__(self, picture: Bytes8, classifier: Classifier) -> None:
        self._spec, self._device = classifier.spec, classifier.device
        self._height, self._width = picture.shape[:2]
        std = torch.tensor(classifier.spec.std, device=self._device)[:, None, None]
        self._per_level = 1 / (255 * std)

    def by_network(self, picture: Bytes8) -> Tensor:
        seen = image.prepare(Image.fromarray(picture), self._spec).view_HWC
        return to_tensor(seen, self._spec, self._device)

    def back(self, grad_NCHW: Tensor) -> Tensor:
        """d / d pixel (1, 3, H, W), in levels."""
        like = torch.zeros(1, grad_NCHW.shape[1], self._height, self._width, device=self._device, requires_grad=True)
        with torch.enable_grad():
            seen = _cropped(like, self._spec)
        (found,) = torch.autograd.grad(seen, like, grad_NCHW * self._per_level)
        return found


def _cropped(x_NCHW: Tensor, spec: ModelSpec) -> Tensor:
    """Resized by the shorter side and cropped in the middle, as ``convlens.image.view`` does."""
    height, width = x_NCHW.shape[2:]
    short = spec.resize
    size = (int(short * height / width), short) if width <= height else (short, int(short * width / height))
    mode = "bicubic" if spec.interpolation in ("bicubic", "lanczos") else "bilinear"
    if size != (height, width):
        x_NCHW = functional.interpolate(x_NCHW, size=size, mode=mode, align_corners=False, antialias=True)
    top_, left = round((size[0] - spec.crop) / 2.0), round((size[1] - spec.crop) / 2.0)
    return x_NCHW[:, :, top_ : top_ + spec.crop, left : left + spec.crop]


def _rms(x: Tensor) -> Tensor:
    return (x**2).mean().sqrt().clamp_min(1e-30)


def _figure(before: Bytes8, after: Bytes8, said: Any, says: Any, psnr: float) -> Bytes8:
    """Original, fooled, difference, difference × 10, with both predictions."""
    difference: Floats = after.astype(np.float64) - before
    tiles = [
        (before, f"{said[0][1]}, p = {said[0][2]:.3f}"),
        (after, f"{says[0][1]}, p = {says[0][2]:.3f}"),
        (_about_grey(difference), f"difference, PSNR {psnr:.1f} dB"),
        (_about_grey(_AMPLIFIED * difference), f"difference × {_AMPLIFIED}"),
    ]
    shown = [
        vstack([picture, text_image(caption, size=14, width=picture.shape[1])], gap=4) for picture, caption in tiles
    ]
    return add_margin(hstack(shown, gap=8), margin=8)


def _about_grey(difference: Floats) -> Bytes8:
    found: Bytes8 = np.clip(np.rint(127.5 + difference), 0, 255).astype(np.uint8)
    return found
