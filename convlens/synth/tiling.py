"""Gradients of images too large to pass through the network at once, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from convlens.errors import RequestError

# Tiles begin at multiples of it, so that units of strided layers see the same pixels as in the whole image.
GRID = 32


@dataclass(frozen=True)
class Tile:
    """Begin and end along one axis: the network sees ``context``, of which the tile fills in ``core``."""

    context: tuple[int, int]
    core: tuple[int, int]


def tiles_along(length: int, *, tile: int, overlap: int) -> list[Tile]:
    """Tiles whose cores cover ``length`` pixels once, each with a context of ``overlap`` pixels or more either way.

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
    return [
        Tile((max(0, start - margin), min(length, start + room + margin)), (start, min(length, start + room)))
        for start in range(0, length, room)
    ]


def tiled_gradient(x_NCHW: Tensor, gradient: Callable[[Tensor], Tensor], *, tile: int, overlap: int) -> Tensor:
    """``gradient`` of the whole image, computed in tiles.

    Exact where no pixel's gradient depends on others further than ``overlap`` away: where that is a unit's receptive
    field, in a network without global pooling.
    """
    result = torch.empty_like(x_NCHW)
    for rows, columns in _grid(x_NCHW, tile, overlap):
        inner = gradient(x_NCHW[:, :, slice(*rows.context), slice(*columns.context)])
        top, left = rows.core[0] - rows.context[0], columns.core[0] - columns.context[0]
        height, width = rows.core[1] - rows.core[0], columns.core[1] - columns.core[0]
        result[:, :, slice(*rows.core), slice(*columns.core)] = inner[:, :, top : top + height, left : left + width]
    return result


def _grid(x_NCHW: Tensor, tile: int, overlap: int) -> Iterator[tuple[Tile, Tile]]:
    for rows in tiles_along(x_NCHW.shape[2], tile=tile, overlap=overlap):
        for columns in tiles_along(x_NCHW.shape[3], tile=tile, overlap=overlap):
            yield rows, columns
