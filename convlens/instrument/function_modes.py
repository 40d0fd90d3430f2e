"""Average pooling where a network takes the maximum, for the calling thread and one ``with``.

Random numbers that belong to one call, for library code that only knows torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_NAMES = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_MAX_POOLS = {functional.max_pool2d, torch.max_pool2d}


class AveragePooling(TorchFunctionMode):
    """Inside this ``with``, every max pooling of the calling thread takes the mean of what lies in the picture.

    Gatys et al. 2015 found textures to look better so. Windows, strides and padding stay; padding is not counted, as
    the maximum does not count it. Max pooling that is dilated, or whose indices are asked for, is left as it is.
    ``calls`` counts those replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func not in _MAX_POOLS or not _plain(args, given):
            return func(*args, **given)
        self.calls += 1
        return _mean(*args, **given)


def _plain(args: tuple[Any, ...], given: Mapping[str, Any]) -> bool:
    named: dict[str, Any] = {**dict(zip(("input", *_NAMES), args, strict=False)), **given}
    return named.get("dilation", 1) in (1, (1, 1), [1, 1]) and not named.get("return_indices", False)


def _mean(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    return functional.avg_pool2d(input, kernel_size, stride or None, padding, ceil_mode, count_include_pad=False)


_DRAWS = {torch.normal, torch.randn, torch.rand, torch.randint, torch.randperm, torch.bernoulli, torch.multinomial}


class private_rng(TorchFunctionMode):  # noqa: N801 - reads as a function in a with statement
    """Inside this ``with``, draws of the calling thread come from a generator of their own, seeded by ``seed``.

    torch.manual_seed would reach into every other thread, and be reached into.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        super().__init__()
        self._generator = torch.Generator(device=device).manual_seed(seed)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DRAWS and kwargs.get("generator") is None:
            kwargs["generator"] = self._generator
        return func(*args, **kwargs)
