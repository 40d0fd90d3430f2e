"""Bounds through what moves values about, and through what computes each value by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convlens.errors import UnsupportedModelError
from convlens.inside.bounds import NOTHING, joined
from convlens.inside.calls import Call, is_marked

Rule = Callable[[Call], Any]

_MOVES = {
    "cat",
    "stack",
    "index_select",
    "flip",
    "roll",
    "repeat",
    "copy_",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "native_channel_shuffle",
    "squeeze_",
    "unsqueeze_",
    "transpose_",
    "t_",
    "_reshape_copy",
}
# Where torch's own tag "pointwise" is missing.
_POINTWISE = {"hardswish", "hardtanh", "mish", "silu", "prelu", "_prelu_kernel", "rsub", "_to_copy", "lift", "relu6"}
_CONSTANTS = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like"}


def rule_of(call: Call) -> Rule | None:
    if call.name in ("view", "_unsafe_view"):
        return _view
    if call.function.is_view or call.name in _MOVES:
        return _moved
    if _is_pointwise(call):
        return _in_place if call.in_place else _pointwise
    if call.name in ("fill_", "zero_") and not is_marked(call.given.get("value")):
        return _blanked
    return constant if call.name in _CONSTANTS else None


def _is_pointwise(call: Call) -> bool:
    plain = call.name.removesuffix("_")
    return torch.Tag.pointwise in call.function.tags or call.name in _POINTWISE or plain in _POINTWISE


def _view(call: Call) -> Tensor:
    """A view where the strides allow it; ours may differ from those that the network's own kernels would leave."""
    return call.bounds[0].reshape(call.given["size"])


def _moved(call: Call) -> Any:
    _refuse_writing_beside(call)
    return call.verbatim()


def _pointwise(call: Call) -> Tensor:
    """Each value from those at its place, wherever they came from: the hull of their bounds."""
    shape = np.broadcast_shapes(*(value.shape for value in call.given.values() if isinstance(value, Tensor)))
    return joined([bounds.expand(shape) for bounds in call.bounds])


def _in_place(call: Call) -> Tensor:
    _refuse_writing_beside(call)
    target, *others = call.bounds
    for other in others:
        target.copy_(torch.maximum(target, other))
    return target


def _blanked(call: Call) -> Tensor:
    """A constant is written over what was there."""
    return call.bounds[0].fill_(NOTHING)


def constant(call: Call) -> Any:
    """Only shaped like bounds."""
    return call.function(*call.args, **call.kwargs)


def _refuse_writing_beside(call: Call) -> None:
    if call.in_place and not is_marked(call.given["self"]):
        raise UnsupportedModelError("writing into a tensor that was made for it")
