"""Bounds through what moves values about, and through what computes each value by itself.

Bounds through what joins a whole axis: means, norms, softmax, fully connected layers, products of matrices.

Bounds through what reads windows of a map: convolution, pooling, padding, enlarging.

A network run on bounds in place of pictures: every operation tells what it does to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from convlens.errors import UnsupportedModelError
from convlens.inspection.receptive_bounds import (
    NOTHING,
    ROWS,
    SEEN,
    Call,
    bins,
    each,
    hull,
    is_marked,
    joined,
    marked,
    read,
    windows,
)

MovingRule = Callable[[Call], Any]
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


def rule_of(call: Call) -> MovingRule | None:
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


WholeRule = Callable[[Call], Tensor]


def _reduction(call: Call) -> Tensor:
    bounds: Tensor = call.given["self"]
    dims = _dims(call, bounds.ndim)
    # Of pictures (N, C, H, W) the last two axes are places, even where the map is a single one.
    around = _around(bounds, dims, of_places=bounds.ndim == 4 and min(dims) >= 2)
    return around.reshape(call.shape())


def _along(call: Call) -> Tensor:
    """Every value hears of all others along the axis, as in a softmax."""
    bounds: Tensor = call.given["self"]
    return hull(bounds, call.given["dim"] % bounds.ndim).expand_as(bounds).contiguous()


def _layer_norm(call: Call) -> Tensor:
    bounds: Tensor = call.given["input"]
    dims = range(bounds.ndim - len(call.given["normalized_shape"]), bounds.ndim)
    return _around(bounds, dims).expand_as(bounds).contiguous()


def _group_norm(call: Call) -> Tensor:
    bounds: Tensor = call.given["input"]
    grouped = bounds.reshape(ROWS, call.given["group"], -1)
    return hull(grouped, 2).expand_as(grouped).reshape(bounds.shape)


def _batch_norm(call: Call) -> Tensor:
    """By constants in an ordinary network; by the map's own statistics in instance normalisation, where torch makes
    one long row of channels of the batch.
    """
    bounds: Tensor = call.given["input"]
    if not call.given.get("training", False):
        return bounds.clone()
    if bounds.shape[0] != 1:
        raise UnsupportedModelError("statistics over several pictures")
    rows = bounds.reshape(ROWS, -1, *bounds.shape[2:])
    return _around(rows, range(2, rows.ndim), of_places=True).expand_as(rows).reshape(bounds.shape)


def _product(call: Call) -> Tensor:
    """Of matrices: element (i, j) hears of row i of the left and of column j of the right one."""
    given, shape = call.given, call.shape()
    left, right = (given[name] for name in _FACTORS[call.name])
    parts = [given["self"]] if call.name in _WITH_BIAS and is_marked(given["self"]) else []
    if is_marked(right):
        if right.ndim == 2:
            raise UnsupportedModelError("a product that mixes the pictures of a batch")
        parts.append(hull(right, right.ndim - 2))
    if is_marked(left):
        parts.append(hull(left, left.ndim - 1, of_places=left.ndim == 2 and left.shape[0] == ROWS))
    return joined([part.expand(shape) for part in parts])


_FACTORS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
}
_WITH_BIAS = ("addmm", "baddbmm")  # as "self"


def _dims(call: Call, ndim: int) -> list[int]:
    given = call.given.get("dim")
    dims = [given] if isinstance(given, int) else list(given or range(ndim))
    return [dim % ndim for dim in dims]


def _around(bounds: Tensor, dims: Iterable[int], *, of_places: bool = False) -> Tensor:
    for dim in dims:
        if dim == 0:
            raise UnsupportedModelError("a reduction that mixes the pictures of a batch")
        bounds = hull(bounds, dim, of_places=of_places)
    return bounds


WHOLE_RULES: Mapping[str, WholeRule] = {
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "logsumexp"), _reduction),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum"), _along),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"), _batch_norm),
    **dict.fromkeys(_FACTORS, _product),
}
WindowRule = Callable[[Call], Tensor]


def _convolution(call: Call) -> Tensor:
    given = call.given
    if given["transposed"]:
        raise UnsupportedModelError("a transposed convolution, which enlarges its map")
    bounds, weight, groups = given["input"], given["weight"], int(given["groups"])
    if weight.ndim != bounds.ndim:
        raise UnsupportedModelError("a convolution of a single picture without a batch")
    batch, channels, *sides = bounds.shape
    joined = bounds.reshape(batch, groups, channels // groups, *sides).amax(2)
    steps = (given["stride"], given["padding"], given["dilation"])
    read_ = _windowed(joined, call.shape()[2:], weight.shape[2:], *steps)
    outputs = weight.shape[0] // groups
    return read_[:, :, None].expand(-1, -1, outputs, *read_.shape[2:]).reshape(batch, -1, *read_.shape[2:])


def _pooling(call: Call) -> Tensor:
    given = call.given
    kernel = given["kernel_size"]
    axes = int(call.name.partition("d")[0][-1]) if call.name[-1] == "d" else 2
    steps = (given["stride"] or kernel, given["padding"], given.get("dilation", 1))
    return _windowed(given["self"], call.shape()[-axes:], kernel, *steps)


def _windowed(
    bounds: Tensor,
    outputs: Sequence[int],
    kernel: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> Tensor:
    """Along each of the last axes in turn: a rectangle's sides do not depend on each other."""
    axes = len(outputs)
    steps = zip(outputs, *(each(value, axes) for value in (kernel, stride, padding, dilation)), strict=True)
    for axis, step in enumerate(steps, start=bounds.ndim - axes):
        bounds = read(bounds, axis, windows(*step))
    return bounds


def _adaptive_pooling(call: Call) -> Tensor:
    bounds: Tensor = call.given["self"]
    wanted = call.given["output_size"]
    for axis, outputs in enumerate(wanted, start=bounds.ndim - len(wanted)):
        # One output joins all places of its axis.
        if outputs == 1:
            bounds = hull(bounds, axis, of_places=True)
        else:
            bounds = read(bounds, axis, bins(outputs, bounds.shape[axis]))
    return bounds


def _constant_padding(call: Call) -> Tensor:
    bounds: Tensor = call.given["self"]
    for axis, before, after in _pads(call):
        bounds = read(bounds, axis, torch.arange(-before, bounds.shape[axis] + after)[:, None])
    return bounds


def _mirrored_padding(call: Call) -> Tensor:
    """The padding shows pixels of the picture again; in the reach it is the picture going on, as other padding is."""
    bounds: Tensor = call.given["self"]
    for axis, before, after in _pads(call):
        length = bounds.shape[axis]
        at = torch.arange(-before, length + after)
        inside = at.clamp(0, length - 1)
        if "reflection" in call.name:
            inside = 2 * inside - at
        seen, reach = read(bounds, axis, inside[:, None]), read(bounds, axis, at[:, None])
        bounds = torch.cat([seen[:SEEN], reach[SEEN:]])
    return bounds


def _pads(call: Call) -> list[tuple[int, int, int]]:
    """(axis, before, after); torch lists the last axis first."""
    pads = call.given["pad" if "pad" in call.given else "padding"]
    last = call.given["self"].ndim - 1
    return [(last - n, before, after) for n, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True))]


def _nearest(call: Call) -> Tensor:
    """Output o shows the position floor(o / scale)."""
    bounds: Tensor = call.given["self"]
    for axis, outputs in zip((2, 3), call.shape()[2:], strict=True):
        given = call.given["scales_h" if axis == 2 else "scales_w"]
        scale = given or outputs / bounds.shape[axis]
        at = torch.floor(torch.arange(outputs) / scale).long().clamp_max(bounds.shape[axis] - 1)
        bounds = bounds.index_select(axis, at)
    return bounds


WINDOW_RULES: Mapping[str, WindowRule] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _pooling,
    "max_pool3d_with_indices": _pooling,
    "avg_pool2d": _pooling,
    "avg_pool3d": _pooling,
    "_adaptive_avg_pool2d": _adaptive_pooling,
    "adaptive_max_pool2d": _adaptive_pooling,
    "constant_pad_nd": _constant_padding,
    "reflection_pad2d": _mirrored_padding,
    "replication_pad2d": _mirrored_padding,
    "upsample_nearest2d": _nearest,
}
_RULES: Mapping[str, Callable[[Call], Any]] = {**WINDOW_RULES, **WHOLE_RULES}


class Bounding(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Inside this ``with``, what the calling thread computes from marked tensors are bounds.

    Below autograd, where this mode sits, a network is a few dozen operations however it was written: modules, functions
    and methods look alike there, shapes are numbers, and whatever Python decides by them is decided as in a real run.
    Tracing with torch.fx stops at such decisions (timm's "same" padding, loops over shapes). ``where`` says what is
    running, for errors. An operation without a rule is refused: UnsupportedModelError.
    """

    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor here
        self._where = where

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = Call(func, args, kwargs or {})
        if not call.bounds:
            return func(*args, **call.kwargs)
        rule = _RULES.get(call.name) or rule_of(call)
        if rule is None:
            raise self._refusal(call, "no rule is known for it")
        try:
            result = rule(call)
        except UnsupportedModelError as error:
            raise self._refusal(call, f"it is {error.message}") from None
        if rule is constant:
            return result
        return _as_returned(call, pytree.tree_map_only(Tensor, marked, result))

    def _refusal(self, call: Call, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"receptive fields cannot be followed through aten::{call.name} in {self._where()}: {reason}; they can be "
            "through convolution, pooling, padding, norms, means, fully connected layers, slices and element-wise steps"
        )


def _as_returned(call: Call, result: Any) -> Any:
    """In the form in which the operation returns it: some give indices or statistics as well, which nobody follows."""
    returns = len(call.function._schema.returns)
    return (result, *[None] * (returns - 1)) if returns > 1 and isinstance(result, Tensor) else result
