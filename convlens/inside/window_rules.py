"""Bounds through what reads windows of a map: convolution, pooling, padding, enlarging."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from convlens.errors import UnsupportedModelError
from convlens.inside.bounds import SEEN, bins, hull, read, windows
from convlens.inside.calls import Call, each

Rule = Callable[[Call], Tensor]


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


RULES: Mapping[str, Rule] = {
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
