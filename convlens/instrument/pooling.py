"""Average pooling where a network takes the maximum, for the calling thread and one ``with``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_NAMES = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_MAX_POOLS = {functional.max_pool2d, torch.max_pool2d}


class AveragePools(TorchFunctionMode):
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
