"""Two operators that ONNX has and torch lacks; without them a gradient graph would miss ONNX Runtime's fast kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18 as op
from torch import Tensor

aten = torch.ops.aten

# Powers of two, so that nothing is rounded: every normal x > 0 exceeds 1 / _STEEP, and upper - x is exact.
_STEEP, _LESS_STEEP = 2.0**127, 2.0**100


@torch.library.custom_op("convlens::inside", mutates_args=())
def inside(x: Tensor, upper: float | None) -> Tensor:
    """1 where 0 < x < upper, else 0, in the type of ``x``.

    In ONNX a HardSigmoid so steep that there is nothing between: on CPUs ONNX Runtime keeps its blocked layout through
    it, but not through a comparison with Where, which with the reordering around it took a fifth of SqueezeNet's time.
    """
    return ((x > 0) if upper is None else (x > 0) & (x < upper)).to(x.dtype)


@inside.register_fake
def _(x: Tensor, upper: float | None) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("convlens::max_pool", mutates_args=())
def max_pool(
    x_NCHW: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    """The maxima and their indices in the flattened ``x_NCHW``; of equal values the first.

    torch counts indices within a channel, ONNX over the whole tensor; translating one into the other would take a
    second pooling.
    """
    out_NCHW, index_NCHW = aten.max_pool2d_with_indices(x_NCHW, kernel, stride, padding, dilation, ceil_mode)
    n, c, h, w = x_NCHW.shape
    starts_NC11 = torch.arange(n * c, device=x_NCHW.device).reshape(n, c, 1, 1) * (h * w)
    return out_NCHW, index_NCHW + starts_NC11


@max_pool.register_fake
def _(
    x_NCHW: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    out_NCHW, index_NCHW = aten.max_pool2d_with_indices(x_NCHW, kernel, stride, padding, dilation, ceil_mode)
    return out_NCHW, index_NCHW


def _onnx_inside(x: Any, upper: float | None) -> Any:
    above = op.HardSigmoid(x, alpha=_STEEP, beta=0.0)
    if upper is None:
        return above
    return op.Mul(above, op.HardSigmoid(x, alpha=-_LESS_STEEP, beta=upper * _LESS_STEEP))


def _onnx_max_pool(
    x: Any,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Any:
    return op.MaxPool(
        x,
        kernel_shape=kernel,
        strides=stride,
        pads=[*padding, *padding],
        dilations=dilation,
        ceil_mode=int(ceil_mode),
    )


# For torch.onnx.export(custom_translation_table=…).
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.convlens.inside.default: _onnx_inside,
    torch.ops.convlens.max_pool.default: _onnx_max_pool,
}
