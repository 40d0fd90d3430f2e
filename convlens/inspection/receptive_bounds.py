"""Bounds: for every value of a tensor the rectangle of pixels that it depends on, in the shape of a batch of images.

A batch of eight stands where a network expects its images. Element (r, c, y, x) belongs to value (c, y, x):

    rows 0..3   −top, −left, bottom, right of the pixels that it depends on; NOTHING where there are none
    rows 4..7   the same, had the image no border: the reach

What only moves values about (a view, a slice, a channel shuffle) moves their bounds the same way, by the same call.
"""

# Tops and lefts are negated so that the smallest rectangle around several others, their hull, is always a maximum.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

ROWS, SEEN = 8, 4
NOTHING = -math.inf
_MARK = "_convlens_bounds"


def image_bounds(channels: int, height: int, width: int) -> Tensor:
    """(8, channels, height, width): each pixel depends on itself. Float32 holds whole numbers up to 16,777,216."""
    y_HW, x_HW = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    sides_4HW = torch.stack([-y_HW, -x_HW, y_HW + 1, x_HW + 1]).float()
    return sides_4HW.repeat(2, 1, 1)[:, None].repeat(1, channels, 1, 1)


def marked(tensor: Tensor) -> Tensor:
    """The same tensor, from now on known to hold bounds; every other tensor is a constant."""
    setattr(tensor, _MARK, True)
    return tensor


def is_marked(value: object) -> bool:
    return isinstance(value, Tensor) and hasattr(value, _MARK)


def hull(bounds: Tensor, dim: int, *, of_places: bool = False) -> Tensor:
    """The hull of all values along one axis, which is kept with length 1.

    ``of_places`` says that places of the map are joined; where it is False, bounds that differ along the axis show it.
    Channels share a place, so joining them changes nothing.
    """
    around = bounds.amax(dim, keepdim=True)
    if of_places or bool((bounds.amin(dim, keepdim=True) != around).any()):
        # The result looks at the map from end to end and there is nothing beyond: its reach is what it sees.
        around[SEEN:] = around[:SEEN]
    return around


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The hull of several bounds element by element, after broadcasting; a new tensor."""
    shape = torch.Size(np.broadcast_shapes(*(part.shape for part in parts)))
    first, *others = parts
    out = first.expand(shape).clone(memory_format=torch.contiguous_format)
    for other in others:
        torch.maximum(out, other, out=out)
    return out


def read(bounds: Tensor, axis: int, at_OK: Tensor) -> Tensor:
    """Along one axis, output o is the hull of the positions at_OK[o]; those outside the map are padding.

    Padding is not seen. In the reach it stands for the image that would be there: as far from the map's last position
    as that is from the one before it.
    """
    out: Tensor | None = None
    # One kernel position at a time: K maps in turn take less memory than one gather of K maps.
    for at_O in at_OK.unbind(1):
        taken = _taken(bounds, axis, at_O)
        out = taken if out is None else torch.maximum(out, taken, out=out)
    assert out is not None
    return out


def _taken(bounds: Tensor, axis: int, at_O: Tensor) -> Tensor:
    length = bounds.shape[axis]
    taken = bounds.index_select(axis, at_O.clamp(0, length - 1))
    for end, outside in ((0, at_O < 0), (length - 1, at_O >= length)):
        (where,) = outside.nonzero(as_tuple=True)
        if len(where):
            taken.index_copy_(axis, where, _beyond(bounds, axis, end, at_O[where] - end))
    return taken


def _beyond(bounds: Tensor, axis: int, end: int, distance_P: Tensor) -> Tensor:
    """Bounds of positions so far beyond one end of the map (negative: before its beginning)."""
    last = bounds.narrow(axis, end, 1)
    inner = bounds.narrow(axis, end + (1 if end == 0 else -1), 1) if bounds.shape[axis] > 1 else last
    # From one position to the next, towards higher ones; 0 for constants (NOTHING minus NOTHING).
    stride = torch.nan_to_num(inner - last if end == 0 else last - inner, nan=0.0, posinf=0.0, neginf=0.0)
    steps = distance_P.float().reshape([-1 if dim == axis else 1 for dim in range(bounds.ndim)])
    beyond = last + stride * steps
    beyond[:SEEN] = NOTHING
    return beyond


def windows(outputs: int, kernel: int, stride: int, before: int, dilation: int) -> Tensor:
    """The positions that each output of a convolution or pooling reads: (outputs, kernel)."""
    return torch.arange(outputs)[:, None] * stride - before + torch.arange(kernel) * dilation


def bins(outputs: int, length: int) -> Tensor:
    """The positions that each output of adaptive pooling reads, the last one repeated."""
    # As torch has it: from floor(o·L/O) up to and without ceil((o + 1)·L/O).
    begin = torch.arange(outputs) * length // outputs
    last = -(-(torch.arange(outputs) + 1) * length // outputs) - 1
    longest = int((last - begin).max()) + 1
    return torch.minimum(begin[:, None] + torch.arange(longest), last[:, None])


def per_axis(value: int | Sequence[int], axes: int) -> Iterator[int]:
    """One number per axis, from one for all or one each."""
    values = [value] if isinstance(value, int) else list(value)
    return iter(values * axes if len(values) == 1 else values)


@dataclass(frozen=True)
class Call:
    """One call of an ATen operation, some of whose tensors are bounds; ``arguments`` has them by their schema names."""

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """``relu_`` of ``aten::relu_.default``."""
        return str(self.function._schema.name).partition("::")[2]

    @property
    def in_place(self) -> bool:
        return self.name.endswith("_") and not self.name.endswith("__")

    @cached_property
    def arguments(self) -> dict[str, Any]:
        schema = self.function._schema.arguments
        defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        positional = {argument.name: value for argument, value in zip(schema, self.args, strict=False)}
        return defaults | positional | dict(self.kwargs)

    @cached_property
    def bounds(self) -> list[Tensor]:
        """The arguments that are bounds, in order."""
        return [leaf for leaf in pytree.tree_leaves((self.args, dict(self.kwargs))) if is_marked(leaf)]

    def shape(self) -> tuple[int, ...]:
        """The shape of the (first) result."""
        # torch itself computes it, on the meta device: no rule about ceil_mode or broadcasting is written twice.
        result = self._with(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))
        return tuple(result.shape if isinstance(result, Tensor) else result[0].shape)

    def verbatim(self) -> Any:
        """The call itself made on bounds; constants among its tensors depend on NOTHING."""
        return self._with(lambda tensor: tensor if is_marked(tensor) else torch.full(tensor.shape, NOTHING))

    def _with(self, swap: Callable[[Tensor], Tensor]) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, swap, (self.args, dict(self.kwargs)))
        return self.function(*args, **kwargs)
