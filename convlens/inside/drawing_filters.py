"""Figures of filters: each filter a picture, several networks side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from convlens.colour import gradient_picture, grid
from convlens.errors import RequestError
from convlens.figures import enlarged, framed, lettered, side_by_side, stacked
from convlens.inside.filters import Filters
from convlens.types import Bytes8, Floats

Scaling = Literal["own", "shared"]

_PANEL = 520  # pixels that a panel's width comes close to
_MOST = 32  # rows and columns of a grid of greys: more cannot be read
_TITLE, _CAPTION = 20, 14
_SCALED = {
    "own": "each filter is scaled by itself, to its largest weight",
    "shared": "all filters are scaled alike, to the layer's largest weight",
}
_DARK = (
    "These are not directly interpretable: they weigh channels of the layer before, not colours, and what those "
    "channels mean is not in this picture."
)


def filters_figure(panels: Sequence[Filters], *, scaling: Scaling = "own") -> Bytes8:
    """A figure with one panel for each layer: filters in three colours as they are, others as a grid of greys.

    Zero is mid grey throughout. ``own``: each filter's largest weight, positive or negative, is full strength, so that
    faint ones can be read as well; ``shared``: the layer's largest weight is, so that strengths can be compared.
    """
    if not panels:
        raise RequestError("no layer to draw; give at least one")
    return framed(side_by_side([_panel(filters, scaling) for filters in panels], gap=40), margin=16)


def filter_pictures(weights_OCHW: Floats, *, scaling: Scaling = "own") -> list[Bytes8]:
    """Filters over red, green and blue as RGB pictures: 0 is 128, the largest weight 1 or 255."""
    limits = _limits(weights_OCHW, scaling)
    return [gradient_picture(filter_CHW, limit=limit) for filter_CHW, limit in zip(weights_OCHW, limits, strict=True)]


def grey_pictures(weights_OCHW: Floats, *, most: int, scaling: Scaling = "own") -> list[Bytes8]:
    """The first ``most`` filters' first ``most`` channels as grey pictures, all channels of a filter together.

    A filter's scale is that of all its channels, also of those that are not shown.
    """
    limits = _limits(weights_OCHW, scaling)[:most]
    return [
        gradient_picture(np.repeat(kernel_HW[None], 3, axis=0), limit=limit)
        for filter_CHW, limit in zip(weights_OCHW[:most], limits, strict=True)
        for kernel_HW in filter_CHW[:most]
    ]


def _limits(weights_OCHW: Floats, scaling: Scaling) -> list[float]:
    """The weight drawn at full strength, for each filter; of filters that are zero throughout any number will do."""
    largest_O = np.abs(weights_OCHW).max(axis=(1, 2, 3))
    if scaling == "shared":
        largest_O = np.full_like(largest_O, largest_O.max())
    return [float(largest) or 1.0 for largest in largest_O]


def _panel(filters: Filters, scaling: Scaling) -> Bytes8:
    tiles, columns, words = (_colours if filters.on_colours else _greys)(filters.weights_OCHW, scaling)
    factor = max(1, _PANEL // (columns * (tiles[0].shape[1] + 1)))
    sheet = grid([enlarged(tile, factor) for tile in tiles], columns=columns, gap=max(1, factor // 2))
    width = max(sheet.shape[1], _PANEL)
    title = lettered(f"{filters.model}  {filters.layer}", size=_TITLE, width=width)
    shape = "×".join(map(str, filters.weights_OCHW.shape))
    caption = f"{filters.kind} {shape}. {words} Zero is mid grey; {_SCALED[scaling]}."
    return stacked([title, sheet, lettered(caption, size=_CAPTION, width=width)], gap=8)


def _colours(weights_OCHW: Floats, scaling: Scaling) -> tuple[list[Bytes8], int, str]:
    tiles = filter_pictures(weights_OCHW, scaling=scaling)
    return tiles, math.ceil(math.sqrt(len(tiles))), "Weights over red, green and blue."


def _greys(weights_OCHW: Floats, scaling: Scaling) -> tuple[list[Bytes8], int, str]:
    """A row a filter, a column a channel, as many as can be read; a depthwise layer's single column as a square."""
    outputs, channels = weights_OCHW.shape[:2]
    if channels == 1:
        tiles = grey_pictures(weights_OCHW, most=_MOST**2, scaling=scaling)
        words = f"{_counted(len(tiles), outputs, 'filters')}, each over a single channel."
        return tiles, math.ceil(math.sqrt(len(tiles))), f"{words} {_DARK}"
    rows, columns = min(outputs, _MOST), min(channels, _MOST)
    over = _counted(columns, channels, "channels").lower()
    words = f"{_counted(rows, outputs, 'filters')} (rows) over {over} (columns)."
    return grey_pictures(weights_OCHW, most=_MOST, scaling=scaling), columns, f"{words} {_DARK}"


def _counted(shown: int, there_are: int, what: str) -> str:
    return f"All {there_are} {what}" if shown == there_are else f"The first {shown} of {there_are} {what}"
