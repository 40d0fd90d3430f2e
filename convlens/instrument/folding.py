"""Batch norms folded into the convolutions in front of them, for a few passes; the network stays as it is.

A batch norm in eval mode is a factor and an offset per channel, which the convolution's own weights can carry. What is
folded is found by watching one pass, so any spelling and any class of layer will do; scripted modules stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# What only asks a tensor for its form, and so does not mind whether it is normalised yet.
_FORM = {
    Tensor.__len__,
    Tensor.size,
    Tensor.dim,
    Tensor.is_floating_point,
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "is_cuda")),
}


# In place they copy their input first, for the gradient. Who goes on with the input and not with what they give would
# notice; as of anything else that is folded, the first gradient tells.
_OUT_OF_PLACE: Mapping[Any, Callable[..., Tensor]] = {
    torch._C._nn.hardtanh_: torch._C._nn.hardtanh,
    torch._C._nn.relu6_: torch._C._nn.relu6,
}


@dataclass(frozen=True)
class BatchNorm:
    """One call of ``batch_norm`` in eval mode, each of its tensors (C,)."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    @classmethod
    def of(
        cls,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> BatchNorm | None:
        """None where it depends on the batch. The arguments are those of ``functional.batch_norm``."""
        if training or running_mean is None or running_var is None:
            return None
        return cls(running_mean, running_var, weight, bias, eps)


@dataclass(frozen=True)
class Convolution:
    """A call of ``conv2d`` and the batch norm, if any, that alone reads what it gives."""

    weight: Tensor
    bias: Tensor | None
    norm: BatchNorm | None

    def folded(self, memory_format: torch.memory_format) -> tuple[Tensor, Tensor | None]:
        """Weight (O, I, h, w) and bias (O,) of the convolution that does both steps.

        What a convolution gives is channels last where its input or its weight is.
        """
        if self.norm is None:
            return self.weight.contiguous(memory_format=memory_format), self.bias
        scale = (self.norm.variance + self.norm.eps).rsqrt()
        scale = scale if self.norm.weight is None else scale * self.norm.weight
        bias = -self.norm.mean if self.bias is None else self.bias - self.norm.mean
        offset = bias * scale if self.norm.bias is None else bias * scale + self.norm.bias
        weight = self.weight * scale[:, None, None, None]
        return weight.contiguous(memory_format=memory_format), offset


class WatchedConvolutions(TorchFunctionMode):
    """Inside this ``with``, notes one forward pass's convolutions, and the largest tensor that a step gives.

    A convolution whose weight serves twice, or whose result is read by anything but one batch norm, has no ``norm``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest_bytes = 0
        self._calls: list[tuple[Tensor, Tensor | None, Tensor]] = []  # weight, bias, output; kept, so that ids stay
        self._readers: dict[int, list[BatchNorm | None]] = {}  # by id of a convolution's output

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """Those whose weight serves once, in the order of their calls."""
        weights = [id(weight) for weight, _, _ in self._calls]
        return tuple(
            Convolution(weight, bias, readers[0] if len(readers := self._readers[id(out)]) == 1 else None)
            for weight, bias, out in self._calls
            if weights.count(id(weight)) == 1
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _FORM:
            norm = BatchNorm.of(*args, **kwargs) if func is functional.batch_norm else None
            for tensor in _tensors((args, kwargs)):
                if id(tensor) in self._readers:
                    self._readers[id(tensor)].append(norm)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self.largest_bytes = max(self.largest_bytes, out.nbytes)
            if func is torch.conv2d:
                self._note(out, *args, **kwargs)
        return out

    def _note(self, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> None:
        self._calls.append((weight, bias, out))
        self._readers[id(out)] = []


class FoldedBatchNorms:
    """The folded weights of convolutions, as they are now: made for one sweep, not kept while weights may change.

    ``mode()`` is for one ``with`` and one thread.
    """

    def __init__(
        self, convolutions: Sequence[Convolution], memory_format: torch.memory_format = torch.channels_last
    ) -> None:
        self._convolutions = {
            id(each.weight): _FoldedConvolution(each, *each.folded(memory_format), memory_format == torch.channels_last)
            for each in convolutions
        }

    def mode(self) -> TorchFunctionMode:
        """Inside this ``with``, the convolutions do their batch norm's work as well, which then returns its input."""
        return _FoldedMode(self._convolutions)


@dataclass
class _FoldedConvolution:
    convolution: Convolution
    weight: Tensor
    bias: Tensor | None
    may_pack: bool  # what a packed convolution gives is channels last
    _forwards: _PackedWeight | None = None
    _backwards: _PackedWeight | None = None

    def __call__(self, input: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Tensor:
        if not self._packs(input, padding):
            return torch.conv2d(input, self.weight, self.bias, stride, padding, dilation, groups)
        geometry = _Geometry(_pair(padding), _pair(stride), _pair(dilation), groups)
        if input.requires_grad and torch.is_grad_enabled():
            out: Tensor = _PackedConvolution.apply(input, self, geometry)
            return out
        return self.packed(input, geometry)

    def packed(self, input: Tensor, geometry: _Geometry) -> Tensor:
        """The convolution itself, on weights in oneDNN's layout."""
        if self._forwards is None:
            self._forwards = _PackedWeight(self.weight.detach(), geometry, input.shape)
        return self._forwards.convolve(input, self.bias, geometry)

    def input_gradient(self, gradient: Tensor, geometry: _Geometry, shape: torch.Size) -> Tensor:
        """From the gradient by what the convolution gives, that by its input of this shape."""
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        reverse = geometry.reverse(self.weight)
        if reverse is None:
            return self._by_torch(gradient, geometry, shape)
        if self._backwards is None:
            self._backwards = _PackedWeight(_transposed(self.weight.detach(), geometry.groups), reverse, gradient.shape)
        return self._backwards.convolve(gradient, None, reverse)

    def _by_torch(self, gradient: Tensor, geometry: _Geometry, shape: torch.Size) -> Tensor:
        input = torch.empty(shape, memory_format=torch.channels_last)  # of which only the form is read
        padding, stride, dilation, groups = geometry
        wanted = [True, False, False]
        gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            gradient, input, self.weight.detach(), None, stride, padding, dilation, False, [0, 0], groups, wanted
        )
        return gradients[0]

    def _packs(self, input: Tensor, padding: Any) -> bool:
        plain = input.dtype == self.weight.dtype == torch.float32 and not isinstance(padding, str)
        return self.may_pack and plain and input.device.type == "cpu" and input.ndim == 4 and _has_packed_convolutions()


class _Geometry(NamedTuple):
    padding: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def reverse(self, weight: Tensor) -> _Geometry | None:
        """That of the convolution, by transposed weights, that gives the input's gradient; None where none does."""
        if self.stride != (1, 1):
            return None
        reach = [dilation * (side - 1) for dilation, side in zip(self.dilation, weight.shape[2:], strict=True)]
        padding = reach[0] - self.padding[0], reach[1] - self.padding[1]
        return None if min(padding) < 0 else self._replace(padding=padding)


class _PackedWeight:
    """A weight in oneDNN's own layout, for input of this shape or another number of images."""

    def __init__(self, weight: Tensor, geometry: _Geometry, shape: torch.Size) -> None:
        pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        self._weight = pack(weight.to_mkldnn(), *geometry, list(shape))

    def convolve(self, input: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(input, self._weight, bias, *geometry, "none", [], "")
        return out


class _PackedConvolution(torch.autograd.Function):
    """A packed convolution with a gradient by its input, and by nothing else."""

    # torch's own brings the weights into oneDNN's layout at each call, and on one thread computes convolutions of
    # 1 x 1 without oneDNN: of the default model 48 gradients by fours took .88 to .95 of the time so.
    @staticmethod
    def forward(ctx: Any, input: Tensor, convolution: _FoldedConvolution, geometry: _Geometry) -> Tensor:
        ctx.convolution, ctx.geometry, ctx.shape = convolution, geometry, input.shape
        return convolution.packed(input.detach(), geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.convolution.input_gradient(gradient, ctx.geometry, ctx.shape), None, None


def _transposed(weight: Tensor, groups: int) -> Tensor:
    """(I, O / groups, h, w) of (O, I / groups, h, w), turned by 180 degrees."""
    outputs, inputs, height, width = weight.shape
    by_group = weight.flip(2, 3).view(groups, outputs // groups, inputs, height, width).transpose(1, 2)
    turned = by_group.reshape(groups * inputs, outputs // groups, height, width)
    return turned.contiguous(memory_format=torch.channels_last)


class _FoldedMode(TorchFunctionMode):
    def __init__(self, convolutions: Mapping[int, _FoldedConvolution]) -> None:
        super().__init__()
        self._convolutions = convolutions
        self._normalised: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.conv2d:
            return self._convolve(*args, **kwargs)
        if func in _OUT_OF_PLACE and torch.is_grad_enabled():
            return _OUT_OF_PLACE[func](*args, **kwargs)
        if func is functional.batch_norm:
            done = self._normalised.pop(id(args[0] if args else kwargs["input"]), None)
            if done is not None:
                return done
        return func(*args, **kwargs)

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *more: Any, **named: Any) -> Tensor:
        found = self._convolutions.get(id(weight))
        if found is None:
            return torch.conv2d(input, weight, bias, *more, **named)
        out = found(input, *more, **named)
        if found.convolution.norm is not None:
            self._normalised[id(out)] = out
        return out


@functools.cache
def _has_packed_convolutions() -> bool:
    """Whether torch has oneDNN's convolution of weights in oneDNN's own layout, which its compiler uses.

    Otherwise oneDNN brings the weights into that layout at each call: a sixth of ResNet-50's time at batch 8.
    """
    has_kernel = hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    can_pack = has_kernel and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
    return can_pack and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
