"""Insertion and deletion: the target's score while pixels are shown, or removed, in the order that a map gives them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, get_args

import numpy as np
import torch
from annotated_types import Interval
from numpy.typing import NDArray
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
    """``ImageCurves`` of one order alone."""
    return ImageCurves(forward, target, kinds, protocol).of(order)


class _Perturbation(NamedTuple):
    """An image on the way: so many of the best ``pixels`` shown or removed, None where nothing of it is left."""

    kind: CurveKind
    pixels: int | None


class ImageCurves:
    """The curves of one image's target for orders of its pixels (``pixel_order``).

    ``forward`` holds one row. Each curve takes ``steps`` forward passes for the first order, and one less for others:
    its end without any pixel of the image is the same. Raises UnsupportedModelError for a network without classes.
    """

    def __init__(
        self, forward: Forward, target: int, kinds: Sequence[CurveKind], protocol: CurveProtocol | None = None
    ) -> None:
        require_classes(forward, "evaluation")
        self._forward, self._target = forward, target
        self._protocol = protocol or CurveProtocol()
        self._kinds: tuple[CurveKind, ...] = tuple(dict.fromkeys(kinds))
        image_CHW = forward.x_NCHW[0].detach().cpu()
        self._image_CHW: Floats = image_CHW.numpy()
        substrates = {kind: self._protocol.substrate(kind) for kind in self._kinds}
        shown = {"mean": torch.zeros_like(image_CHW)}
        if "blur" in substrates.values():
            shown["blur"] = blurred(image_CHW)
        self._substrate_CHW = {kind: shown[name].numpy() for kind, name in substrates.items()}
        self._end_1K: dict[CurveKind, Floats] = {}  # the logits of what is shown without any pixel of the image

    def of(self, order: Ints) -> dict[CurveKind, Curve]:
        """The curves for one order, each score once; calls ``on_step`` with the stage "evaluate" after parts of them.

        RequestError for an order of other pixels.
        """
        height, width = self._image_CHW.shape[-2:]
        if not np.array_equal(np.sort(order), np.arange(height * width)):
            raise RequestError(f"the order must hold each of the {height * width} pixels once")
        rank = np.empty(height * width, np.int32)
        rank[np.asarray(order)] = np.arange(height * width)
        steps = self._protocol.steps
        counts = np.rint(fractions(steps) * rank.size).astype(int).tolist()[1:-1]
        plan = [_Perturbation(kind, count) for kind in self._kinds for count in counts]
        ends = [] if self._end_1K else [_Perturbation(kind, None) for kind in self._kinds]
        logits_NK = self._logits([*plan, *ends], rank.reshape(height, width))
        for n, kind in enumerate(self._kinds if ends else ()):
            self._end_1K[kind] = logits_NK[len(plan) + n][None]
        return {
            kind: self._curve(kind, logits_NK[n * (steps - 1) :][: steps - 1]) for n, kind in enumerate(self._kinds)
        }

    def _logits(self, plan: Sequence[_Perturbation], rank_HW: Ints) -> Floats:
        """(N, K) of the perturbed images, which are made when they are asked for."""
        forward, parts, done = self._forward, [], 0
        with closing(
            forward.outputs_in_parts(len(plan), lambda first, last: self._images(plan[first:last], rank_HW))
        ) as outputs:
            for logits_NK in outputs:
                parts.append(logits_NK)
                done += len(logits_NK)
                forward.on_step(Step("evaluate", done, len(plan)))
        return np.concatenate(parts).astype(np.float64)

    def _images(self, plan: Sequence[_Perturbation], rank_HW: Ints) -> Floats:
        """(N, C, H, W)"""
        x_NCHW = np.empty((len(plan), *self._image_CHW.shape), self._image_CHW.dtype)
        for n, (kind, pixels) in enumerate(plan):
            substrate_CHW = self._substrate_CHW[kind]
            if pixels is None:
                x_NCHW[n] = substrate_CHW
            elif kind == "insertion":
                _choose(rank_HW < pixels, self._image_CHW, substrate_CHW, out=x_NCHW[n])
            else:
                _choose(rank_HW < pixels, substrate_CHW, self._image_CHW, out=x_NCHW[n])
        return x_NCHW

    def _curve(self, kind: CurveKind, between_NK: Floats) -> Curve:
        ends = [self._end_1K[kind], np.asarray(self._forward.logits_NK, np.float64)]
        first_1K, last_1K = ends if kind == "insertion" else ends[::-1]
        logits_SK = np.concatenate([first_1K, between_NK, last_1K])
        probability_SK = scores_of(logits_SK, "probability", self._forward.spec.activation)
        at_S = fractions(self._protocol.steps)
        return Curve(kind, at_S, logits_SK[:, self._target], probability_SK[:, self._target])


def _choose(where_HW: NDArray[np.bool_], one_CHW: Floats, other_CHW: Floats, *, out: Floats) -> None:
    """``np.where``, bit by bit: by itself it took six times as long, a thirtieth of a curve."""
    bits = np.dtype(f"i{out.itemsize}")
    one, other, chosen = (each.view(bits) for each in (one_CHW, other_CHW, out))
    np.bitwise_xor(one, other, out=chosen)
    chosen &= -where_HW.astype(bits)  # all bits or none
    chosen ^= other


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
