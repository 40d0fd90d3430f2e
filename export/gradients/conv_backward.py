"""The gradient of a convolution by its input, as ordinary convolutions of stride 1.

A ConvTranspose would do it in one operator, but ONNX Runtime has fast CPU kernels for convolutions only; it remains for
other than two spatial axes. Weights are constants, so ONNX Runtime rearranges them once, when it opens the graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Sizes = Sequence[Any]  # ints, of which the batch's may be symbolic


def conv_input_gradient(
    grad_NOHW: Tensor,
    weight: Tensor,
    shape: Sizes,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The gradient (N, I, H, W) for an input of that ``shape``; ``weight`` is (O, I / groups, height, width)."""
    weight_IO = _swapped(weight, groups)
    if max(stride) == 1:
        return _spread(grad_NOHW, weight_IO, shape, padding, dilation, groups)
    if max(weight.shape[2:]) == 1:
        small_NIHW = functional.conv2d(grad_NOHW, weight_IO, groups=groups)
        return _framed(_apart(small_NIHW, stride), shape, padding)
    depthwise = weight_IO.shape[1] == 1
    if stride[0] == stride[1] and max(dilation) == 1 and not depthwise:
        return _by_phases(grad_NOHW, weight_IO, shape, stride[0], padding, groups)
    return _spread(_apart(grad_NOHW, stride), weight_IO, shape, padding, dilation, groups)


def _swapped(weight: Tensor, groups: int) -> Tensor:
    """(O, I / groups, …) to (I, O / groups, …)."""
    outputs, inputs, *window = weight.shape
    grouped = weight.reshape(groups, outputs // groups, inputs, *window).transpose(1, 2)
    return grouped.reshape(groups * inputs, outputs // groups, *window)


def _spread(
    grad_NOHW: Tensor, weight_IO: Tensor, shape: Sizes, padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """For stride 1: the full correlation with the flipped weights."""
    pads = []
    for axis in (0, 1):
        reach = dilation[axis] * (weight_IO.shape[2 + axis] - 1)
        before = reach - padding[axis]
        pads.append((before, shape[2 + axis] + padding[axis] - grad_NOHW.shape[2 + axis]))
    return _convolved(grad_NOHW, weight_IO, pads, dilation, groups)


def _by_phases(
    grad_NOHW: Tensor, weight_IO: Tensor, shape: Sizes, stride: int, padding: Sequence[int], groups: int
) -> Tensor:
    """For larger strides: one convolution for all ``stride``² phases of a pixel under the windows, then pixel_shuffle.

    The usual way, zeros between the gradients, would do stride² times the multiplications.
    """
    pads, starts = [], []
    for axis in (0, 1):
        pad, size = padding[axis], shape[2 + axis]
        taps = math.ceil(weight_IO.shape[2 + axis] / stride)
        first, last = pad // stride, math.ceil((pad + size) / stride)
        pads.append((taps - 1 - first, last - grad_NOHW.shape[2 + axis]))
        starts.append(pad - stride * first)
    phases = _convolved(grad_NOHW, _phased(weight_IO, stride), pads, (1, 1), groups)
    top, left = starts
    return functional.pixel_shuffle(phases, stride)[:, :, top : top + shape[2], left : left + shape[3]]


def _phased(weight_IO: Tensor, stride: int) -> Tensor:
    """Every stride-th tap separately: (I · stride², O, taps, taps), in the order of pixel_shuffle."""
    inputs, outputs, height, width = weight_IO.shape
    down, right = math.ceil(height / stride), math.ceil(width / stride)
    filled = functional.pad(weight_IO, (0, right * stride - width, 0, down * stride - height))
    apart = filled.reshape(inputs, outputs, down, stride, right, stride).permute(0, 3, 5, 1, 2, 4)
    return apart.reshape(inputs * stride**2, outputs, down, right)


def _convolved(
    x: Tensor, weight_IO: Tensor, pads: Sequence[tuple[int, int]], dilation: Sequence[int], groups: int
) -> Tensor:
    turned, even = weight_IO.flip(2, 3), all(before == after >= 0 for before, after in pads)
    if even:
        return functional.conv2d(x, turned, padding=[before for before, _ in pads], dilation=dilation, groups=groups)
    return functional.conv2d(_padded(x, pads), turned, dilation=dilation, groups=groups)


def _apart(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Each value becomes the first of a block of ``stride`` values, the others zeros."""
    # by reshapes of four axes, because with more torch fixes a symbolic batch size
    batch, channels, height, width = x.shape
    down, right = stride
    wide = functional.pad(x.reshape(batch, channels, height * width, 1), (0, right - 1))
    rows = wide.reshape(batch, channels, height, width * right)
    return functional.pad(rows, (0, (down - 1) * width * right)).reshape(batch, channels, height * down, width * right)


def _framed(x: Tensor, shape: Sizes, padding: Sequence[int]) -> Tensor:
    """Without the padding at the start, and cropped or zero-padded at the end to the shape."""
    return _padded(x, [(-padding[axis], shape[2 + axis] + padding[axis] - x.shape[2 + axis]) for axis in (0, 1)])


def _padded(x: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
    """Padded with zeros: pairs (before, after) for rows, then columns; negative numbers crop."""
    return functional.pad(x, list(chain(*reversed(pads)))) if any(chain(*pads)) else x


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sizes | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    """aten.convolution_backward; only the gradient by the input is ever used."""
    if transposed:
        # The gradient of a transposed convolution is the convolution itself.
        back = torch.ops.aten.convolution(grad, weight, None, stride, padding, dilation, False, [0], groups)
        return back, None, None
    if x.dim() != 4:
        return _transposed(grad, x, weight, stride, padding, dilation, groups), None, None
    back = conv_input_gradient(
        grad, weight, x.shape, stride=_pair(stride), padding=_pair(padding), dilation=_pair(dilation), groups=groups
    )
    return back, None, None


def _transposed(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    missing = [
        size - ((have - 1) * step - 2 * pad + spread * (window - 1) + 1)
        for size, have, step, pad, spread, window in zip(
            x.shape[2:], grad.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
        )
    ]
    back: Tensor = torch.ops.aten.convolution(grad, weight, None, stride, padding, dilation, True, missing, groups)
    return back


def _pair(values: Sequence[int]) -> Sequence[int]:
    return tuple(values) * 2 if len(values) == 1 else values
