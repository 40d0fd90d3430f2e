"""Gradients at many points per image, weighted and summed: noisy copies, or the points of a path."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from convlens.errors import UnsupportedModelError
from convlens.explain.batch_size import cpu_gradient_batch
from convlens.explain.input_gradient import differentiating, input_gradient
from convlens.explain.torch_forward import ForwardPass
from convlens.instrument import FoldedBatchNorms, WatchedConvolutions, fast_convolutions, in_format_of, memory_format
from convlens.runtime.memory import is_out_of_memory, with_smaller_batch
from convlens.types import Ints, Step

_GPU_BATCH = 16  # images of one forward and backward pass
_WORTH_FOLDING = 16
_AGREEMENT = 1e-2
# What rounding does at kinks moved .02 of a gradient at most; a network that is not folded rightly gives another one.
_KINKS = 0.1
_TRIED = 3


class Points(NamedTuple):
    """B points of R rows, and what the gradients at them are multiplied with before they are summed."""

    at_RBCHW: Tensor
    factor_RBCHW: Tensor | None = None


PointsOfRows = Callable[[Tensor], Points]


def summed_gradients(
    forward: ForwardPass,
    target_N: Ints,
    weights_P: Tensor,
    points: Callable[[], Callable[[Tensor], PointsOfRows]],
    *,
    stage: str,
) -> Tensor:
    """Σ weights_P · d logit(target) / d x at each row's P points, times the points' factors; (N, C, H, W).

    ``points()`` begins anew (with the first noise, say) and gives a function of point numbers (B,), asked for in their
    order; that gives a function of rows (R,), whose result are these rows' points. So several rows share a batch: with
    one row alone, few points would make small and slow ones. Reports ``stage``, the method's name, before each batch.
    """
    module, x_NCHW = forward.classifier.module, forward.x_NCHW
    most = cpu_gradient_batch(module, x_NCHW) if x_NCHW.device.type == "cpu" else _GPU_BATCH
    return with_smaller_batch(lambda batch: _summed(forward, target_N, weights_P, points(), stage, batch), most)


def _summed(
    forward: ForwardPass,
    target_N: Ints,
    weights_P: Tensor,
    points: Callable[[Tensor], PointsOfRows],
    stage: str,
    batch: int,
) -> Tensor:
    x_NCHW, module = forward.x_NCHW, forward.classifier.module
    device, count = x_NCHW.device, len(weights_P)
    weights_P, targets = weights_P.to(device, x_NCHW.dtype), torch.as_tensor(target_N, device=device)
    gradient_of = _InputGradient(module, stage, images=count * len(x_NCHW))
    total, done = torch.zeros_like(x_NCHW), 0
    # As many points at a time however many rows there are: so a row's sum does not depend on the others.
    for numbers in torch.split(torch.arange(count, device=device), min(count, batch)):
        points_of = points(numbers)
        for rows in torch.split(torch.arange(len(x_NCHW), device=device), batch // len(numbers)):
            forward.on_step(Step(stage, done, count * len(x_NCHW)))
            at_RBCHW, factor_RBCHW = points_of(rows)
            target_B = targets[rows].repeat_interleave(len(numbers))
            gradient = gradient_of(at_RBCHW.flatten(0, 1), target_B)
            weighted = gradient.reshape(at_RBCHW.shape) * weights_P[numbers, None, None, None]
            if factor_RBCHW is not None:
                weighted = weighted * factor_RBCHW
            total[rows] += weighted.sum(1)
            done += len(gradient)
    return total


@contextmanager
def folded_once(module: nn.Module) -> Iterator[None]:
    """Inside this ``with`` a network's batch norms are folded for the first call and serve the others.

    For who calls often: to fold and to compare take as long as three gradients. The network, its weights too,
    must stay as it is.
    """
    _FOLDED[module] = {}
    try:
        yield
    finally:
        _FOLDED.pop(module, None)


# By the form of an image.
_FOLDED: weakref.WeakKeyDictionary[nn.Module, dict[torch.Size, FoldedBatchNorms]] = weakref.WeakKeyDictionary()


class _InputGradient:
    """d logit(target) / d x (N, C, H, W), each row by its own target (N,), of so many ``images`` in all.

    Many of them on a CPU go through the network with its batch norms folded into its convolutions, if that gives the
    first image, or one of noise, the gradient that it has without.
    """

    # Of the default model 64 gradients by eights took .8 of the time so; to find out what can be folded takes one.
    def __init__(self, module: nn.Module, method: str, *, images: int) -> None:
        self._module, self._method = module, method
        self._may_fold = images >= _WORTH_FOLDING
        self._folded: FoldedBatchNorms | None = None

    def __call__(self, x_NCHW: Tensor, targets: Tensor) -> Tensor:
        if not self._may_fold or x_NCHW.device.type != "cpu":
            return self._gradient(x_NCHW, targets)
        kept = _FOLDED.get(self._module, {})
        folded = self._folded or kept.get(x_NCHW.shape[1:])
        if folded is not None:
            with folded.mode():
                return self._gradient(x_NCHW, targets)
        return self._first(x_NCHW, targets, kept)

    def _first(self, x_NCHW: Tensor, targets: Tensor, kept: dict[torch.Size, FoldedBatchNorms]) -> Tensor:
        """The gradients of the first batch, by the network that the others then go through as well."""
        with WatchedConvolutions() as watched:
            expected_1CHW = self._gradient(x_NCHW[:1], targets[:1])
        if not any(convolution.norm for convolution in watched.convolutions):
            self._may_fold = False
            return self._gradient(x_NCHW, targets)
        with torch.no_grad():
            self._folded = FoldedBatchNorms(watched.convolutions, memory_format(self._module))
        try:
            with self._folded.mode():
                gradient_NCHW = self._gradient(x_NCHW, targets)
            if self._agrees(gradient_NCHW[:1], expected_1CHW, targets[:1]):
                kept[x_NCHW.shape[1:]] = self._folded
                return gradient_NCHW
        except (RuntimeError, UnsupportedModelError) as error:
            # Checkpointed layers run a second time during the backward pass, where nothing is folded.
            if is_out_of_memory(error):
                raise
        self._may_fold, self._folded = False, None
        return self._gradient(x_NCHW, targets)

    def _agrees(self, gradient_1CHW: Tensor, expected_1CHW: Tensor, target_1: Tensor) -> bool:
        """Whether the folded network gives the gradient ``expected_1CHW`` of the network, or the same for noise."""
        # Where a unit within rounding of 0 is on in one network and off in the other, the gradient moves: in one of
        # seven points near a grey baseline by more than a hundredth (default model), and at all that are near it.
        deviation, generator = _deviation(gradient_1CHW, expected_1CHW), torch.Generator().manual_seed(0)
        for _ in range(_TRIED):
            if not _AGREEMENT < deviation <= _KINKS:
                break
            noise_1CHW = torch.randn(expected_1CHW.shape, generator=generator).to(expected_1CHW)
            assert self._folded is not None, "it is compared after it was made"
            with self._folded.mode():  # two: a network may take another way for one image alone
                gradient_1CHW = self._gradient(noise_1CHW.repeat(2, 1, 1, 1), target_1.repeat(2))[:1]
            deviation = _deviation(gradient_1CHW, self._gradient(noise_1CHW, target_1))
        return deviation <= _AGREEMENT

    def _gradient(self, x_NCHW: Tensor, targets: Tensor) -> Tensor:
        x_NCHW = in_format_of(self._module, x_NCHW).detach().requires_grad_()
        with differentiating(self._method), torch.enable_grad(), fast_convolutions(x_NCHW.device):
            score = self._module(x_NCHW).gather(1, targets[:, None]).sum()
        return input_gradient(score, x_NCHW, module=self._module, method=self._method)


def _deviation(gradient_1CHW: Tensor, expected_1CHW: Tensor) -> float:
    """Relative, as a whole: single pixels differ by more where a unit is on in one and off in the other."""
    return float((gradient_1CHW - expected_1CHW).norm() / expected_1CHW.norm().clamp_min(torch.finfo().tiny))
