"""Function modes beside the ReLU rules: average pooling for max pooling, random numbers that belong to one call, and
depthwise convolutions on a GPU that need no compilation for every batch size.

Each holds for the calling thread and one ``with``, whatever the network or library code calls inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_MAX_POOLS = {functional.max_pool2d, torch.max_pool2d}
_MAX_POOL_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_DRAWS = {torch.normal, torch.randn, torch.rand, torch.randint, torch.randperm, torch.bernoulli, torch.multinomial}


class AveragePooling(TorchFunctionMode):
    """Inside this ``with``, every max pooling of the calling thread takes the mean of what lies in the image.

    Gatys et al. 2015 found that textures look better so. Windows, strides and padding stay; padding is not counted, as
    the maximum does not count it. Max pooling that is dilated, or whose indices are requested, has no counterpart and
    is left as it is. ``calls`` counts those replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _MAX_POOLS or not _has_counterpart(args, kwargs):
            return func(*args, **kwargs)
        self.calls += 1
        return _average_pool(*args, **kwargs)


def _has_counterpart(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    arguments: dict[str, Any] = {**dict(zip(_MAX_POOL_ARGUMENTS, args, strict=False)), **kwargs}
    return arguments.get("dilation", 1) in (1, (1, 1), [1, 1]) and not arguments.get("return_indices", False)


def _average_pool(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """With max_pool2d's arguments in max_pool2d's order."""
    return functional.avg_pool2d(input, kernel_size, stride or None, padding, ceil_mode, count_include_pad=False)


class private_rng(TorchFunctionMode):  # noqa: N801 - reads as a function in a with statement
    """Inside this ``with``, draws of the calling thread come from a generator of their own, seeded by ``seed``.

    For library code that only knows torch's global generator. A call with a generator of its own keeps that.
    """

    # Not torch.manual_seed: it reaches into every other thread, whose draws in turn move the global generator on.

    def __init__(self, seed: int) -> None:
        super().__init__()
        # On the CPU whatever the device, so that a seed means the same noise everywhere: SmoothGrad by a GPU's own
        # generator correlated by .34 with SmoothGrad on the CPU.
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _DRAWS or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        kwargs["generator"] = self._generator
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        device = kwargs.pop("device", None) or (tensors[0].device if tensors else None)
        on_cpu = {name: _on_cpu(value) for name, value in kwargs.items()}
        drawn = func(*map(_on_cpu, args), **on_cpu)
        return drawn if device is None else drawn.to(device)


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


class NativeDepthwise(TorchFunctionMode):
    """Inside this ``with``, depthwise convolutions of the calling thread on a GPU run on torch's own kernels.

    For channels-last input, and for some sizes of any, torch hands them to cuDNN, which compiles a kernel for every
    layer and batch size it meets: 135 ms each, 1.7 s for a first batch of the default model against .04 s so, and no
    faster afterwards (3.1 and 3.2 ms; H200, cuDNN 9.19). Results are the same to rounding. Convolutions whose weights
    want a gradient are left as they are.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.conv2d:
            call = _DepthwiseCall.of(*args, **options)
            if call is not None:
                return _Depthwise.apply(call.x, call.weight, call.bias, call.stride, call.padding, call.dilation)
        return func(*args, **options)


@dataclass(frozen=True)
class _DepthwiseCall:
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(
        cls,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> _DepthwiseCall | None:
        depthwise = input.ndim == 4 and 1 < groups == input.shape[1] == len(weight)
        if not depthwise or not input.is_cuda or isinstance(padding, str) or weight.requires_grad:
            return None
        return cls(input, weight, bias, _pair(stride), _pair(padding), _pair(dilation))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.geometry = x.shape[2:], (stride, padding, dilation)
        kernel = weight.shape[2], weight.shape[3]
        return cast(Tensor, torch.ops.aten._conv_depthwise2d(x, weight, kernel, bias, stride, padding, dilation))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        return depthwise_input_gradient(grad, weight, ctx.size, *ctx.geometry), None, None, None, None, None


def depthwise_input_gradient(
    grad_NCHW: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    *,
    convolve: Callable[..., Tensor] = torch.ops.aten._conv_depthwise2d,
) -> Tensor:
    """The gradient of a depthwise convolution by its input (N, C, *size): a depthwise convolution with the kernel
    turned around, over the output's gradient with ``stride`` - 1 zeros between its values.

    torch's own backward goes to cuDNN as soon as anything is channels last; hence written out.
    """
    spread = [(length - 1) * step + 1 for length, step in zip(grad_NCHW.shape[2:], stride, strict=True)]
    spread_NCHW = grad_NCHW
    if stride != (1, 1):
        spread_NCHW = grad_NCHW.new_zeros((*grad_NCHW.shape[:2], *spread))
        spread_NCHW[:, :, :: stride[0], :: stride[1]] = grad_NCHW
    edges: list[int] = []
    for axis in (1, 0):  # functional.pad begins with the last axis
        reach = dilation[axis] * (weight.shape[2 + axis] - 1)
        before = reach - padding[axis]
        edges += [before, size[axis] + reach - before - spread[axis]]
    padded_NCHW = functional.pad(spread_NCHW, edges)
    kernel = weight.shape[2], weight.shape[3]
    turned = weight.flip(2, 3).contiguous()
    return convolve(padded_NCHW.contiguous(), turned, kernel, None, (1, 1), (0, 0), dilation)


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def fast_convolutions(device: torch.device) -> AbstractContextManager[object]:
    """``NativeDepthwise`` on a GPU, nothing elsewhere."""
    return NativeDepthwise() if device.type == "cuda" else nullcontext()
