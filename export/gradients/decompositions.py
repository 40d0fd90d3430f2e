"""Decompositions: operators of a backward pass that torch's exporter does not know, as forward operators that it does.

Each entry of ``DECOMPOSITIONS`` computes what torch's operator of that name computes, in inference mode and for the
gradient by the input alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

from export.gradients.conv_backward import conv_input_gradient, convolution_backward
from export.gradients.custom_ops import inside, max_pool

aten = torch.ops.aten


def _relu(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """A clamp at 0 as a ReLU, which ONNX Runtime treats better; NotImplemented leaves other clamps as they are."""
    return aten.relu(x) if low == 0 and high is None else NotImplemented


def _relu_(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    return aten.relu_(x) if low == 0 and high is None else NotImplemented


def _threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    return grad * inside(x, None) if threshold == 0 else torch.where(x > threshold, grad, 0.0)


def _hardtanh_backward(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    return grad * inside(x, float(high)) if low == 0 < high else torch.where((x > low) & (x < high), grad, 0.0)


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if training or mean is None or variance is None:
        return _normalised(x, weight, bias, eps)
    outputs: tuple[Tensor, Tensor, Tensor] = aten._native_batch_norm_legit_no_training(
        x, weight, bias, mean, variance, momentum, eps
    )
    return outputs


def _batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    save_mean: Tensor | None,
    save_invstd: Tensor | None,
    training: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    if training or mean is None or variance is None:
        return _normalised_backward(grad, x, weight, eps), None, None
    # With running statistics batch norm is affine, so its gradient is its scale.
    scale_C = torch.rsqrt(variance + eps)
    scale_C = scale_C if weight is None else scale_C * weight
    return grad * scale_C.reshape(-1, *[1] * (grad.dim() - 2)), None, None


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm by the input's own statistics: of an instance norm, which has made each image's channels its own."""
    axes, shape = _all_but_channels(x)
    mean, invstd = x.mean(axes, keepdim=True), _inverse_deviation(x, eps)
    out = (x - mean) * invstd
    out = out if weight is None else out * weight.reshape(shape)
    out = out if bias is None else out + bias.reshape(shape)
    return out, mean.reshape(-1), invstd.reshape(-1)


def _normalised_backward(grad: Tensor, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    axes, shape = _all_but_channels(x)
    invstd = _inverse_deviation(x, eps)
    normal = (x - x.mean(axes, keepdim=True)) * invstd
    scaled = grad if weight is None else grad * weight.reshape(shape)
    along = normal * (scaled * normal).mean(axes, keepdim=True)
    return invstd * (scaled - scaled.mean(axes, keepdim=True) - along)


def _inverse_deviation(x: Tensor, eps: float) -> Tensor:
    axes, _ = _all_but_channels(x)
    deviation = x - x.mean(axes, keepdim=True)
    return torch.rsqrt((deviation * deviation).mean(axes, keepdim=True) + eps)


def _all_but_channels(x: Tensor) -> tuple[list[int], list[int]]:
    """The axes that statistics are taken over, and the shape that a value for each channel is spread from."""
    return [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]


def _max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    # A custom operator, because torch's counts indices in another way than ONNX (see ``custom_ops``).
    outputs: tuple[Tensor, Tensor] = max_pool(
        x, _pair(kernel), _pair(stride or kernel), _pair(padding), _pair(dilation), ceil_mode
    )
    return outputs


def _max_pool_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    index: Tensor,
) -> Tensor:
    """Each window's gradient goes to where its maximum was found, by ScatterElements in ONNX."""
    # scatter_add: windows may overlap, and a pixel may be the maximum of several
    return torch.zeros_like(x).reshape(-1).scatter_add(0, index.reshape(-1), grad.reshape(-1)).reshape(x.shape)


def _adaptive_max_pool(x: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """As plain max pooling where the windows are equal and do not overlap; other sizes are left as they are."""
    window = _equal_windows(x, size)
    return NotImplemented if window is None else _max_pool(x, window)


def _adaptive_max_pool_backward(grad: Tensor, x: Tensor, index: Tensor) -> Tensor:
    window = _equal_windows(x, grad.shape[2:])
    return NotImplemented if window is None else _max_pool_backward(grad, x, window, window, (0,), (1,), False, index)


def _equal_windows(x: Tensor, size: Sequence[int]) -> list[int] | None:
    if any(length % count for length, count in zip(x.shape[2:], size, strict=True)):
        return None
    return [length // count for length, count in zip(x.shape[2:], size, strict=True)]


def _avg_pool3d_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """Windows over one axis alone, as a local response norm's over channels, as windows of two; others as they are."""
    flat = all(list(values[1:]) == [most] * 2 for values, most in ((kernel, 1), (stride or kernel, 1), (padding, 0)))
    if not flat:
        return cast(Tensor, NotImplemented)
    shape = x.shape
    grad_NCDP, x_NCDP = (tensor.reshape(*tensor.shape[:3], -1) for tensor in (grad, x))
    step = (stride or kernel)[0]
    out = _avg_pool_backward(
        grad_NCDP, x_NCDP, (kernel[0], 1), (step, 1), (padding[0], 0), ceil_mode, count_include_pad, divisor
    )
    return out.reshape(shape)


def _replication_pad_backward(grad: Tensor, x: Tensor, padding: Sequence[int]) -> Tensor:
    """Each pixel gets the gradients of its copies: a product with a matrix of ones on either side."""
    left, _, top, _ = padding
    down_pH, right_qW = (
        _copies(padded, length, before).to(grad)
        for padded, length, before in zip(grad.shape[2:], x.shape[2:], (top, left), strict=True)
    )
    return torch.matmul(down_pH.T, torch.matmul(grad, right_qW))


def _copies(padded: int, length: int, before: int) -> Tensor:
    """(padded, length): 1 where the padded row is a copy of the row."""
    source = (torch.arange(padded) - before).clamp(0, length - 1)
    return (source[:, None] == torch.arange(length)).float()


def _avg_pool_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """A mean is a convolution with equal weights: 1 over the number of pixels that the window counts."""
    size, step, pad = _pair(kernel), _pair(stride or kernel), _pair(padding)
    counts_HW = _counts(x.shape[2:], grad.shape[2:], size, step, pad, count_include_pad, divisor)
    ones = torch.ones(x.shape[1], 1, *size, dtype=grad.dtype, device=grad.device)
    shares = grad / counts_HW.to(grad)
    return conv_input_gradient(shares, ones, x.shape, stride=step, padding=pad, dilation=(1, 1), groups=x.shape[1])


def _counts(
    shape: Sequence[int],
    windows: Sequence[int],
    size: Sequence[int],
    step: Sequence[int],
    pad: Sequence[int],
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """How many pixels each window's mean counts: those of the image and, with ``count_include_pad``, of the padding."""
    if divisor is not None:
        return torch.full(tuple(windows), float(divisor))
    down, right = (
        torch.tensor([_count(length, window * s - p, k, p if count_include_pad else 0) for window in range(many)])
        for length, many, k, s, p in zip(shape, windows, size, step, pad, strict=True)
    )
    return down[:, None] * right[None, :]


def _count(length: int, start: int, size: int, margin: int) -> int:
    return min(start + size, length + margin) - max(start, -margin)


def _adaptive_avg_pool_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Rows and columns are averaged separately, so the gradient is a product with a matrix on either side."""
    if grad.shape[2:] == x.shape[2:]:
        return grad.clone()
    down_hH, right_wW = (_means(few, many).to(grad) for few, many in zip(grad.shape[2:], x.shape[2:], strict=True))
    return torch.matmul(down_hH.T, torch.matmul(grad, right_wW))


def _means(few: int, many: int) -> Tensor:
    """(few, many): row i averages the pixels floor(i·many/few) to ceil((i+1)·many/few), as adaptive pooling does."""
    rows = []
    for i in range(few):
        start, end = i * many // few, -(-(i + 1) * many // few)
        rows.append([1.0 / (end - start) if start <= j < end else 0.0 for j in range(many)])
    return torch.tensor(rows)


def _pair(values: Sequence[int]) -> list[int]:
    return list(values) * 2 if len(values) == 1 else list(values)


def _torchs_own() -> dict[Any, Callable[..., Any]]:
    """Torch's decompositions of backward steps; those of forward steps would only take the exporter's good ones."""
    known: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions())
    return {step: written for step, written in known.items() if "_backward" in str(step)}


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = _torchs_own() | {
    aten.clamp.default: _relu,
    aten.clamp_.default: _relu_,
    aten.clamp_min.default: _relu,
    aten.clamp_min_.default: _relu_,
    aten.threshold_backward.default: _threshold_backward,
    aten.hardtanh_backward.default: _hardtanh_backward,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.convolution_backward.default: convolution_backward,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
    aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    aten.adaptive_max_pool2d_backward.default: _adaptive_max_pool_backward,
    aten.avg_pool2d_backward.default: _avg_pool_backward,
    aten.avg_pool3d_backward.default: _avg_pool3d_backward,
    aten.replication_pad2d_backward.default: _replication_pad_backward,
    aten._adaptive_avg_pool2d_backward.default: _adaptive_avg_pool_backward,
}
