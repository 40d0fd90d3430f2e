"""Function modes beside the ReLU rules: average pooling for max pooling, and random numbers that belong to one call.

Both hold for the calling thread and one ``with``, whatever the network or library code calls inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
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
