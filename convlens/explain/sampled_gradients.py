"""Gradients at many points per image, weighted and summed: noisy copies, or the points of a path."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from convlens.explain.batch_size import cpu_gradient_batch
from convlens.explain.input_gradient import differentiating, input_gradient
from convlens.explain.torch_forward import ForwardPass
from convlens.instrument import fast_convolutions, in_format_of
from convlens.runtime.memory import with_smaller_batch
from convlens.types import Ints, Step

_GPU_BATCH = 16  # images of one forward and backward pass


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
    total, done = torch.zeros_like(x_NCHW), 0
    # As many points at a time however many rows there are: so a row's sum does not depend on the others.
    for numbers in torch.split(torch.arange(count, device=device), min(count, batch)):
        points_of = points(numbers)
        for rows in torch.split(torch.arange(len(x_NCHW), device=device), batch // len(numbers)):
            forward.on_step(Step(stage, done, count * len(x_NCHW)))
            at_RBCHW, factor_RBCHW = points_of(rows)
            target_B = targets[rows].repeat_interleave(len(numbers))
            gradient = _input_gradient(module, at_RBCHW.flatten(0, 1), target_B, stage)
            weighted = gradient.reshape(at_RBCHW.shape) * weights_P[numbers, None, None, None]
            if factor_RBCHW is not None:
                weighted = weighted * factor_RBCHW
            total[rows] += weighted.sum(1)
            done += len(gradient)
    return total


def _input_gradient(module: torch.nn.Module, x_NCHW: Tensor, targets: Tensor, method: str) -> Tensor:
    """d logit(target) / d x (N, C, H, W), each row by its own target (N,)."""
    x_NCHW = in_format_of(module, x_NCHW).detach().requires_grad_()
    with differentiating(method), torch.enable_grad(), fast_convolutions(x_NCHW.device):
        score = module(x_NCHW).gather(1, targets[:, None]).sum()
    return input_gradient(score, x_NCHW, module=module, method=method)
