"""A network run on bounds in place of images: one rule per operation says what it does to them.

``BoundsMode`` intercepts the operations; below it stand the rules, for what moves values about or computes each by
itself, for what joins a whole axis, and for what reads windows of a map; the table at the end names their operations.
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
    hull,
    is_marked,
    joined,
    marked,
    per_axis,
    read,
    windows,
)

Rule = Callable[[Call], Any]


class BoundsMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Inside this ``with``, what the calling thread computes from marked tensors are bounds.

    ``where`` says what is running, for errors. UnsupportedModelError for an operation without a rule.
    """

    # Below autograd, where this mode sits, a network is a few dozen operations however it was written: modules,
    # functions and methods look alike there, shapes are numbers, and what Python decides by them is decided as in a
    # real run. Tracing with torch.fx stops at such decisions (timm's "same" padding, loops over shapes).

    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor here
        self._where = where

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = Call(func, args, kwargs or {})
        if not call.bounds:
            return func(*args, **call.kwargs)
        rule = _rule_for(call)
        if rule is None:
            raise self._refusal(call, "no rule is known for it")
        try:
            result = rule(call)
        except UnsupportedModelError as error:
            raise self._refusal(call, f"it is {error.message}") from None
        if rule is _constant:
            return result
        return _as_returned(call, pytree.tree_map_only(Tensor, marked, result))

    def _refusal(self, call: Call, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"receptive fields cannot be followed through aten::{call.name} in {self._where()}: {reason}; they can be "
            "through convolution, pooling, padding, norms, means, fully connected layers, slices and element-wise steps"
        )


def _as_returned(call: Call, result: Any) -> Any:
    """With None for the indices or statistics that some operations return as well: nothing follows those."""
    returns = len(call.function._schema.returns)
    return (result, *[None] * (returns - 1)) if returns > 1 and isinstance(result, Tensor) else result


# ---- what moves values about, and what computes each value by itself


def _view(call: Call) -> Tensor:
    # reshape, because the strides of bounds may differ from those that the network's own kernels would leave.
    return call.bounds[0].reshape(call.arguments["size"])


def _moved(call: Call) -> Any:
    _refuse_writing_into_constant(call)
    return call.verbatim()


def _pointwise(call: Call) -> Tensor:
    """Each value from those at its place: the hull of their bounds."""
    shape = np.broadcast_shapes(*(value.shape for value in call.arguments.values() if isinstance(value, Tensor)))
    return joined([bounds.expand(shape) for bounds in call.bounds])


def _pointwise_in_place(call: Call) -> Tensor:
    _refuse_writing_into_constant(call)
    target, *others = call.bounds
    for other in others:
        target.copy_(torch.maximum(target, other))
    return target


def _filled(call: Call) -> Tensor:
    """A constant is written over what was there."""
    return call.bounds[0].fill_(NOTHING)


def _constant(call: Call) -> Any:
    """A constant in the shape of bounds."""
    return call.function(*call.args, **call.kwargs)


def _refuse_writing_into_constant(call: Call) -> None:
    # A constant has the network's own shape and no room for eight rows.
    if call.in_place and not is_marked(call.arguments["self"]):
        raise UnsupportedModelError("a write into a tensor that holds constants")


# ---- what joins a whole axis


def _reduction(call: Call) -> Tensor:
    bounds: Tensor = call.arguments["self"]
    dim = call.arguments.get("dim")
    dims = [axis % bounds.ndim for axis in ([dim] if isinstance(dim, int) else dim or range(bounds.ndim))]
    # Of images (N, C, H, W) the last two axes are places, even where the map is a single one.
    around = _hull_over(bounds, dims, of_places=bounds.ndim == 4 and min(dims) >= 2)
    return around.reshape(call.shape())


def _softmax(call: Call) -> Tensor:
    """Every value depends on all others along the axis."""
    bounds: Tensor = call.arguments["self"]
    return hull(bounds, call.arguments["dim"] % bounds.ndim).expand_as(bounds).contiguous()


def _layer_norm(call: Call) -> Tensor:
    bounds: Tensor = call.arguments["input"]
    dims = range(bounds.ndim - len(call.arguments["normalized_shape"]), bounds.ndim)
    return _hull_over(bounds, dims).expand_as(bounds).contiguous()


def _group_norm(call: Call) -> Tensor:
    bounds: Tensor = call.arguments["input"]
    grouped = bounds.reshape(ROWS, call.arguments["group"], -1)
    return hull(grouped, 2).expand_as(grouped).reshape(bounds.shape)


def _batch_norm(call: Call) -> Tensor:
    bounds: Tensor = call.arguments["input"]
    if not call.arguments.get("training", False):
        return bounds.clone()  # by constants
    # Instance normalisation uses the map's own statistics; torch makes one long row of channels of the batch for it.
    if bounds.shape[0] != 1:
        raise UnsupportedModelError("statistics over several images")
    rows = bounds.reshape(ROWS, -1, *bounds.shape[2:])
    return _hull_over(rows, range(2, rows.ndim), of_places=True).expand_as(rows).reshape(bounds.shape)


_FACTORS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
}
_WITH_BIAS = ("addmm", "baddbmm")  # as "self"


def _matrix_product(call: Call) -> Tensor:
    """Element (i, j) depends on row i of the left factor and column j of the right one."""
    arguments, shape = call.arguments, call.shape()
    left, right = (arguments[name] for name in _FACTORS[call.name])
    parts = [arguments["self"]] if call.name in _WITH_BIAS and is_marked(arguments["self"]) else []
    if is_marked(right):
        if right.ndim == 2:
            raise UnsupportedModelError("a product that mixes the images of a batch")
        parts.append(hull(right, right.ndim - 2))
    if is_marked(left):
        parts.append(hull(left, left.ndim - 1, of_places=left.ndim == 2 and left.shape[0] == ROWS))
    return joined([part.expand(shape) for part in parts])


def _hull_over(bounds: Tensor, dims: Iterable[int], *, of_places: bool = False) -> Tensor:
    for dim in dims:
        if dim == 0:
            raise UnsupportedModelError("a reduction that mixes the images of a batch")
        bounds = hull(bounds, dim, of_places=of_places)
    return bounds


# ---- what reads windows of a map


def _convolution(call: Call) -> Tensor:
    arguments = call.arguments
    if arguments["transposed"]:
        raise UnsupportedModelError("a transposed convolution, which enlarges its map")
    bounds, weight, groups = arguments["input"], arguments["weight"], int(arguments["groups"])
    if weight.ndim != bounds.ndim:
        raise UnsupportedModelError("a convolution of a single image without a batch")
    batch, channels, *sides = bounds.shape
    # An output channel reads all channels of its group, so their hull is read once for all outputs of the group.
    grouped = bounds.reshape(batch, groups, channels // groups, *sides).amax(2)
    steps = (arguments["stride"], arguments["padding"], arguments["dilation"])
    out = _windowed(grouped, call.shape()[2:], weight.shape[2:], *steps)
    outputs = weight.shape[0] // groups
    return out[:, :, None].expand(-1, -1, outputs, *out.shape[2:]).reshape(batch, -1, *out.shape[2:])


def _pooling(call: Call) -> Tensor:
    arguments = call.arguments
    kernel = arguments["kernel_size"]
    axes = int(call.name.partition("d")[0][-1]) if call.name[-1] == "d" else 2
    steps = (arguments["stride"] or kernel, arguments["padding"], arguments.get("dilation", 1))
    return _windowed(arguments["self"], call.shape()[-axes:], kernel, *steps)


def _windowed(
    bounds: Tensor,
    outputs: Sequence[int],
    kernel: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> Tensor:
    # One axis after the other: a rectangle's vertical and horizontal sides do not depend on each other.
    axes = len(outputs)
    steps = zip(outputs, *(per_axis(value, axes) for value in (kernel, stride, padding, dilation)), strict=True)
    for axis, step in enumerate(steps, start=bounds.ndim - axes):
        bounds = read(bounds, axis, windows(*step))
    return bounds


def _adaptive_pooling(call: Call) -> Tensor:
    bounds: Tensor = call.arguments["self"]
    sizes = call.arguments["output_size"]
    for axis, outputs in enumerate(sizes, start=bounds.ndim - len(sizes)):
        if outputs == 1:  # joins all places of its axis
            bounds = hull(bounds, axis, of_places=True)
        else:
            bounds = read(bounds, axis, bins(outputs, bounds.shape[axis]))
    return bounds


def _constant_padding(call: Call) -> Tensor:
    bounds: Tensor = call.arguments["self"]
    for axis, before, after in _pads(call):
        bounds = read(bounds, axis, torch.arange(-before, bounds.shape[axis] + after)[:, None])
    return bounds


def _mirrored_padding(call: Call) -> Tensor:
    bounds: Tensor = call.arguments["self"]
    for axis, before, after in _pads(call):
        length = bounds.shape[axis]
        at = torch.arange(-before, length + after)
        inside = at.clamp(0, length - 1)
        if "reflection" in call.name:
            inside = 2 * inside - at
        # This padding shows pixels of the image again; in the reach it is the image going on, as other padding is.
        seen, reach = read(bounds, axis, inside[:, None]), read(bounds, axis, at[:, None])
        bounds = torch.cat([seen[:SEEN], reach[SEEN:]])
    return bounds


def _pads(call: Call) -> list[tuple[int, int, int]]:
    """(axis, before, after); torch lists the last axis first."""
    pads = call.arguments["pad" if "pad" in call.arguments else "padding"]
    last = call.arguments["self"].ndim - 1
    return [(last - n, before, after) for n, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True))]


def _nearest_upsampling(call: Call) -> Tensor:
    """Output o shows the position floor(o / scale)."""
    bounds: Tensor = call.arguments["self"]
    for axis, outputs in zip((2, 3), call.shape()[2:], strict=True):
        scale = call.arguments["scales_h" if axis == 2 else "scales_w"] or outputs / bounds.shape[axis]
        at = torch.floor(torch.arange(outputs) / scale).long().clamp_max(bounds.shape[axis] - 1)
        bounds = bounds.index_select(axis, at)
    return bounds


# ---- which rule an operation has

_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view"), _view),
    **dict.fromkeys(("cat", "stack", "index_select", "flip", "roll", "repeat", "copy_", "_reshape_copy"), _moved),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"), _moved),
    **dict.fromkeys(("squeeze_", "unsqueeze_", "transpose_", "t_"), _moved),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "logsumexp"), _reduction),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum"), _softmax),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"), _batch_norm),
    **dict.fromkeys(_FACTORS, _matrix_product),
    "convolution": _convolution,
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"), _pooling),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive_pooling),
    "constant_pad_nd": _constant_padding,
    **dict.fromkeys(("reflection_pad2d", "replication_pad2d"), _mirrored_padding),
    "upsample_nearest2d": _nearest_upsampling,
}
# Where torch's own tag "pointwise" is missing.
_POINTWISE = {"hardswish", "hardtanh", "mish", "silu", "prelu", "_prelu_kernel", "rsub", "_to_copy", "lift", "relu6"}
_CONSTANTS = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like"}


def _rule_for(call: Call) -> Rule | None:
    if call.name in _RULES:
        return _RULES[call.name]
    if call.function.is_view:
        return _moved
    plain = call.name.removesuffix("_")
    if torch.Tag.pointwise in call.function.tags or not _POINTWISE.isdisjoint((call.name, plain)):
        return _pointwise_in_place if call.in_place else _pointwise
    if call.name in ("fill_", "zero_") and not is_marked(call.arguments.get("value")):
        return _filled
    return _constant if call.name in _CONSTANTS else None
