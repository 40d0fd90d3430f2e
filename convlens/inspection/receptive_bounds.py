"""Bounds: for every value of a tensor the rectangle of pixels behind it, in the shape of a batch of pictures.

A batch of eight stands where a network expects its pictures. Element (r, c, y, x) says of value (c, y, x):

    rows 0..3   −top, −left, bottom, right of the pixels that it depends on; NOTHING where there are none
    rows 4..7   the same, had the picture no border

Tops and lefts are negated so that the smallest rectangle around several others is always a maximum. What only moves
values about (a view, a slice, a channel shuffle) moves their bounds the same way, by the very same call.

One call of an ATen operation, some of whose tensors are bounds.
"""

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


def of_picture(channels: int, height: int, width: int) -> Tensor:
    """(8, channels, height, width): each pixel has itself behind it. Float32 holds whole numbers up to 16,777,216."""
    y_HW, x_HW = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    sides_4HW = torch.stack([-y_HW, -x_HW, y_HW + 1, x_HW + 1]).float()
    return sides_4HW.repeat(2, 1, 1)[:, None].repeat(1, channels, 1, 1)


def nothing_like(tensor: Tensor) -> Tensor:
    """Bounds of constants."""
    return torch.full(tensor.shape, NOTHING)


def hull(bounds: Tensor, dim: int, *, of_places: bool = False) -> Tensor:
    """Around all values along one axis, which is kept with length 1.

    Where places of the map are joined (``of_places``, or seen from their bounds) the result looks at the map from end
    to end, and there is nothing beyond: its reach is what it saw. Channels sit at the same place; joining them changes
    nothing.
    """
    around = bounds.amax(dim, keepdim=True)
    if of_places or bool((bounds.amin(dim, keepdim=True) != around).any()):
        around[SEEN:] = around[:SEEN]
    return around


def read(bounds: Tensor, axis: int, at_OK: Tensor) -> Tensor:
    """Along one axis, output o is the hull of the positions at_OK[o]; those outside the map are padding.

    Padding was not seen. In the reach it stands for the picture that would be there: as far from the map's last
    position as that is from the one before it.
    """
    out: Tensor | None = None
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
            beyond = _beyond(bounds, axis, end, at_O[where] - end)
            taken.index_copy_(axis, where, beyond)
    return taken


def _beyond(bounds: Tensor, axis: int, end: int, distance_P: Tensor) -> Tensor:
    """Bounds of positions so far beyond one end of the map (negative: before its beginning)."""
    last = bounds.narrow(axis, end, 1)
    inner = bounds.narrow(axis, end + (1 if end == 0 else -1), 1) if bounds.shape[axis] > 1 else last
    # From one position to the next, towards higher ones; of constants (NOTHING minus NOTHING) it is none.
    pace = torch.nan_to_num(inner - last if end == 0 else last - inner, nan=0.0, posinf=0.0, neginf=0.0)
    steps = distance_P.float().reshape([-1 if dim == axis else 1 for dim in range(bounds.ndim)])
    beyond = last + pace * steps
    beyond[:SEEN] = NOTHING
    return beyond


def windows(outputs: int, kernel: int, stride: int, before: int, dilation: int) -> Tensor:
    """The positions that each output of a convolution or pooling reads: (outputs, kernel)."""
    return torch.arange(outputs)[:, None] * stride - before + torch.arange(kernel) * dilation


def bins(outputs: int, length: int) -> Tensor:
    """The positions of adaptive pooling: floor(o·L/O) up to and without ceil((o + 1)·L/O), the last one repeated."""
    begin = torch.arange(outputs) * length // outputs
    last = -(-(torch.arange(outputs) + 1) * length // outputs) - 1
    longest = int((last - begin).max()) + 1
    return torch.minimum(begin[:, None] + torch.arange(longest), last[:, None])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The hull of several bounds element by element, after broadcasting; a new tensor."""
    shape = torch.Size(np.broadcast_shapes(*(part.shape for part in parts)))
    first, *others = parts
    out = first.expand(shape).clone(memory_format=torch.contiguous_format)
    for other in others:
        torch.maximum(out, other, out=out)
    return out


_MARK = "_convlens_bounds"


def marked(tensor: Tensor) -> Tensor:
    """The same tensor, from now on known to hold bounds; every other tensor is a constant."""
    setattr(tensor, _MARK, True)
    return tensor


def is_marked(value: object) -> bool:
    return isinstance(value, Tensor) and hasattr(value, _MARK)


@dataclass(frozen=True)
class Call:
    """``function`` was called with these arguments; ``given`` has them by their names in ATen's schema."""

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
    def given(self) -> dict[str, Any]:
        arguments = self.function._schema.arguments
        defaults = {each.name: each.default_value for each in arguments if each.has_default_value()}
        positional = {each.name: value for each, value in zip(arguments, self.args, strict=False)}
        return defaults | positional | dict(self.kwargs)

    @cached_property
    def bounds(self) -> list[Tensor]:
        """The arguments that are bounds, in order."""
        return [leaf for leaf in pytree.tree_leaves((self.args, dict(self.kwargs))) if is_marked(leaf)]

    def shape(self) -> tuple[int, ...]:
        """Of the (first) result, asked of torch itself: no rule about ceil_mode or broadcasting is written twice."""
        result = self._with(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))
        return tuple(result.shape if isinstance(result, Tensor) else result[0].shape)

    def verbatim(self) -> Any:
        """The call itself made on bounds, constants among its tensors having nothing behind them."""
        return self._with(lambda tensor: tensor if is_marked(tensor) else nothing_like(tensor))

    def _with(self, swap: Callable[[Tensor], Tensor]) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, swap, (self.args, dict(self.kwargs)))
        return self.function(*args, **kwargs)


def each(value: int | Sequence[int], axes: int) -> Iterator[int]:
    """One number an axis, from one for all or one each."""
    values = [value] if isinstance(value, int) else list(value)
    return iter(values * axes if len(values) == 1 else values)
