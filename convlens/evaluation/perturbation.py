"""Insertion and deletion: the target's score while pixels are shown, or removed, in the order that a map gives them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional

from convlens.errors import RequestError
from convlens.explain.forward import Forward
from convlens.explain.registry import require_classes
from convlens.explain.scores import scores_of
from convlens.types import CurveKind, Floats, Ints, ScoreKind, Step

Substrate = Literal["blur", "mean"]
_BLUR_SIDE, _BLUR_SIGMA, _BLUR_PIXELS = 11, 5.0, 224  # the authors' kernel, for images of that side
_MOST_STEPS = 1000


@dataclass(frozen=True)
class CurveProtocol:
    """How curves are made: in so many ``steps`` of equally many pixels, on what the missing pixels show.

    ``mean`` is the training mean, 0 in normalised units; ``blur`` is the image itself, blurred by a Gaussian of 5
    pixels in a square of 11 (for 224 pixels a side; in proportion for others), the border mirrored. The defaults are
    Petsiuk et al.'s (2018, arXiv:1806.07421), whose code takes 224 steps. ``seed`` orders pixels of equal relevance.
    """

    steps: Annotated[int, Interval(ge=2, le=_MOST_STEPS)] = 22
    insertion_substrate: Substrate = "blur"
    deletion_substrate: Substrate = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.steps <= _MOST_STEPS:
            raise RequestError(f"steps={self.steps}; use 2..{_MOST_STEPS}", field="steps")
        if self.seed < 0:
            raise RequestError(f"seed={self.seed}; use 0 or more", field="seed")
        for name in ("insertion_substrate", "deletion_substrate"):
            if getattr(self, name) not in get_args(Substrate):
                raise RequestError(
                    f"no {name} {getattr(self, name)!r}; there are: {', '.join(get_args(Substrate))}", field=name
                )

    def substrate(self, kind: CurveKind) -> Substrate:
        return self.insertion_substrate if kind == "insertion" else self.deletion_substrate


@dataclass(frozen=True)
class Curve:
    """The target's scores (S,) with the best ``fraction_S`` of the pixels shown (insertion) or removed (deletion)."""

    kind: CurveKind
    fraction_S: Floats
    logit_S: Floats
    probability_S: Floats

    def auc(self, score: ScoreKind) -> float:
        """Area under the curve by the trapezoidal rule: the mean score on the way, in the score's own unit."""
        return float(np.trapezoid(self.logit_S if score == "logit" else self.probability_S, self.fraction_S))


def perturbation_curves(
    forward: Forward,
    target: int,
    order: Ints,
    kinds: Sequence[CurveKind],
    protocol: CurveProtocol | None = None,
) -> dict[CurveKind, Curve]:
    """The curves of one image for one order of its pixels (``pixel_order``), ``steps`` forward passes each.

    ``forward`` holds one row. Calls its ``on_step`` with the stage "evaluate" after each part of the passes. Raises
    UnsupportedModelError for a network without classes, RequestError for an order of other pixels.
    """
    protocol = protocol or CurveProtocol()
    require_classes(forward, "evaluation")
    image_CHW = forward.x_NCHW[0].detach().cpu()
    height, width = image_CHW.shape[-2:]
    if not np.array_equal(np.sort(order), np.arange(height * width)):
        raise RequestError(f"the order must hold each of the {height * width} pixels once")
    rank_HW = np.empty(height * width, np.int64)
    rank_HW[np.asarray(order)] = np.arange(height * width)
    perturbed = _Perturbed(image_CHW, rank_HW.reshape(height, width), kinds, protocol)
    parts, done = [], 0
    with closing(forward.outputs_in_parts(len(perturbed), perturbed.images)) as outputs:
        for logits_NK in outputs:
            parts.append(logits_NK)
            done += len(logits_NK)
            forward.on_step(Step("evaluate", done, len(perturbed)))
    logits_NK = np.concatenate(parts).astype(np.float64)
    whole_1K = np.asarray(forward.logits_NK, np.float64)
    curves: dict[CurveKind, Curve] = {}
    for n, kind in enumerate(perturbed.kinds):
        way_NK = logits_NK[n * protocol.steps : (n + 1) * protocol.steps]
        # The end that shows the whole image is known.
        curve_SK = np.concatenate([way_NK, whole_1K] if kind == "insertion" else [whole_1K, way_NK])
        probability_SK = scores_of(curve_SK, "probability", forward.spec.activation)
        curves[kind] = Curve(kind, fractions(protocol.steps), curve_SK[:, target], probability_SK[:, target])
    return curves


def fractions(steps: int) -> Floats:
    """The fractions of the pixels at which a curve has its values: (steps + 1,) from 0 to 1."""
    return np.linspace(0.0, 1.0, steps + 1)


def blurred(image_CHW: Tensor) -> Tensor:
    """The image as the substrate ``blur`` shows it."""
    side = min(image_CHW.shape[-2:])
    scale = side / _BLUR_PIXELS
    kernel = max(3, 2 * round(_BLUR_SIDE * scale / 2 - 0.5) + 1)
    if kernel // 2 >= side:  # nothing to mirror: an image of so few pixels is its own mean
        return image_CHW.mean((-2, -1), keepdim=True).expand_as(image_CHW).clone()
    # torchvision's gaussian_blur; not by torchvision, which a worker of graphs would load for this alone.
    offset = torch.arange(kernel, dtype=image_CHW.dtype) - kernel // 2
    weight = torch.exp(-(offset**2) / (2 * (_BLUR_SIGMA * max(scale, 0.1)) ** 2))
    weight /= weight.sum()
    padded_C1HW = functional.pad(image_CHW[:, None], [kernel // 2] * 4, mode="reflect")
    down_C1HW = functional.conv2d(padded_C1HW, weight.view(1, 1, -1, 1))
    return functional.conv2d(down_C1HW, weight.view(1, 1, 1, -1))[:, 0]


class _Perturbed:
    """The images of all curves but those that show the whole image, made when they are asked for."""

    def __init__(self, image_CHW: Tensor, rank_HW: Ints, kinds: Sequence[CurveKind], protocol: CurveProtocol) -> None:
        self.kinds = tuple(dict.fromkeys(kinds))
        self._image_CHW: Floats = image_CHW.numpy()
        self._rank_HW = rank_HW.astype(np.int32)
        substrates = {protocol.substrate(kind) for kind in self.kinds}
        shown = {"mean": torch.zeros_like(image_CHW), "blur": blurred(image_CHW) if "blur" in substrates else image_CHW}
        counts = np.rint(fractions(protocol.steps) * rank_HW.size).astype(int).tolist()
        self._plan: list[tuple[Any, Any, int]] = []  # what the best pixels show, what the others do, how many are best
        for kind in self.kinds:
            substrate_CHW = shown[protocol.substrate(kind)].numpy()
            if kind == "insertion":
                self._plan += [(self._image_CHW, substrate_CHW, count) for count in counts[:-1]]
            else:
                self._plan += [(substrate_CHW, self._image_CHW, count) for count in counts[1:]]

    def __len__(self) -> int:
        return len(self._plan)

    def images(self, first: int, last: int) -> Floats:
        """(last - first, C, H, W)"""
        x_NCHW = np.empty((last - first, *self._image_CHW.shape), self._image_CHW.dtype)
        for n, (best_CHW, rest_CHW, count) in enumerate(self._plan[first:last]):
            x_NCHW[n] = np.where(self._rank_HW < count, best_CHW, rest_CHW)
        return x_NCHW
