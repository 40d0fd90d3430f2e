"""Gradients of pictures too large to go through the network at once, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from convlens.errors import RequestError

GRID = 32  # tiles begin at its multiples, so that units of strided layers lie where they lie in the whole picture


@dataclass(frozen=True)
class Tile:
    """``seen`` goes through the network, ``kept`` of it is the tile's own; begin and end of rows or columns."""

    seen: tuple[int, int]
    kept: tuple[int, int]


def tiles_along(length: int, *, tile: int, overlap: int) -> list[Tile]:
    """Tiles that cover a side of ``length`` pixels once; each sees ``overlap`` pixels or more beyond its own.

    RequestError where a tile has no room for that.
    """
    margin = -(-overlap // GRID) * GRID
    room = tile // GRID * GRID - 2 * margin
    if length <= tile:
        return [Tile((0, length), (0, length))]
    if room < GRID:
        raise RequestError(
            f"tiles of {tile} pixels have no room for {overlap} more on each side; they need {2 * margin + GRID}",
            field="tile",
        )
    starts = range(0, length, room)
    return [
        Tile((max(0, start - margin), min(length, start + room + margin)), (start, min(length, start + room)))
        for start in starts
    ]


def tiled_gradient(x_NCHW: Tensor, gradient: Callable[[Tensor], Tensor], *, tile: int, overlap: int) -> Tensor:
    """``gradient`` of the whole picture, from tiles; exact where no pixel's gradient depends on others further than
    ``overlap`` away: a unit's receptive field, in a network without global pooling.
    """
    found = torch.empty_like(x_NCHW)
    for rows, columns in _grid(x_NCHW, tile, overlap):
        seen = x_NCHW[:, :, slice(*rows.seen), slice(*columns.seen)]
        inner = gradient(seen)
        top, left = rows.kept[0] - rows.seen[0], columns.kept[0] - columns.seen[0]
        height, width = rows.kept[1] - rows.kept[0], columns.kept[1] - columns.kept[0]
        found[:, :, slice(*rows.kept), slice(*columns.kept)] = inner[:, :, top : top + height, left : left + width]
    return found


def _grid(x_NCHW: Tensor, tile: int, overlap: int) -> Iterator[tuple[Tile, Tile]]:
    for rows in tiles_along(x_NCHW.shape[2], tile=tile, overlap=overlap):
        for columns in tiles_along(x_NCHW.shape[3], tile=tile, overlap=overlap):
            yield rows, columns
