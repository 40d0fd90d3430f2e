"""The legend of a map: a vertical bar in its colours, with round numbers in the units of its values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

import numpy as np

from convlens.types import Bytes8
from convlens.visualization.colormaps import diverging, sequential
from convlens.visualization.heatmaps import Map
from convlens.visualization.overlays import gradient_image, overlay
from convlens.visualization.text import text_image, text_width

BarKind = Literal["sequential", "diverging", "grey"]
"""sequential: 0 to the limit; diverging: -limit to +limit; grey: the same, around mid grey as gradients are drawn."""

LaidOver = Literal["over-diverging", "over-positive", "over-sequential"]
"""Colours over a dimmed photograph, which is grey where the map is 0: blue and red, red alone, red to yellow."""
_SIGNED = ("diverging", "grey", "over-diverging")
Colours = TypeVar("Colours", BarKind, LaidOver, covariant=True)


@dataclass(frozen=True)
class ColourScale(Generic[Colours]):
    """What the colours of a drawn map stand for: ``limit`` is the value at full strength, in the map's own units."""

    colours: Colours
    limit: float

    @property
    def is_signed(self) -> bool:
        """Whether the colours begin at -limit; else at 0."""
        return self.colours in _SIGNED


_THICKNESS, _MARK, _GAP = 14, 4, 3  # pixels: the bar, a tick's line, and between that and its number
_LETTERS = 12
_INK, _FRAME = 20, 150
_LEAST_HEIGHT = 48  # pixels: below, two numbers would touch
_BETWEEN_TICKS = 28  # pixels, at least
_MID_GREY = 128  # of the photograph below a map that is laid over it


def colour_bar(limit: float, *, kind: BarKind | LaidOver, height: int, unit: str = "") -> Bytes8:
    """The colours of a map drawn to ``limit``, alone or over a grey image, as an image of that height beside it.

    The first row of the bar is the limit, the last 0 or -limit; values beyond are drawn as those. Ticks are at
    multiples of 1, 2 or 5 times a power of ten. ``unit`` stands above them, e.g. "logit".
    """
    if not 0 < limit < math.inf or height < _LEAST_HEIGHT:
        raise ValueError(f"limit={limit}, height={height}; need a limit above 0 and at least {_LEAST_HEIGHT} pixels")
    heading = text_image(unit, size=_LETTERS, width=text_width(unit, size=_LETTERS) + 1) if unit else None
    top = (0 if heading is None else len(heading)) + _LETTERS // 2
    rows = height - top - _LETTERS // 2
    if rows < _LEAST_HEIGHT // 2:
        raise ValueError(f"height={height} leaves no room for the unit {unit!r} above the bar; use more, or no unit")
    low = -limit if kind in _SIGNED else 0.0
    bar_HWC = _coloured(np.linspace(limit, low, rows), limit, kind)
    values = tick_values(low, limit, most=max(2, rows // _BETWEEN_TICKS + 1))
    numbers = [_number(value) for value in values]
    beside = _THICKNESS + 2  # a line of grey around the bar, whose ends may be as white as the paper
    left = beside + _MARK + _GAP
    width = left + max(number.shape[1] for number in numbers)
    sheet_HWC = np.full((height, max(width, 0 if heading is None else heading.shape[1]), 3), 255, np.uint8)
    if heading is not None:
        sheet_HWC[: len(heading), : heading.shape[1]] = heading
    sheet_HWC[top - 1 : top + rows + 1, :beside] = _FRAME
    sheet_HWC[top : top + rows, 1 : beside - 1] = bar_HWC
    for value, number in zip(values, numbers, strict=True):
        row = top + round((limit - value) / (limit - low) * (rows - 1))
        sheet_HWC[row, beside : beside + _MARK] = _INK
        first = row - len(number) // 2
        sheet_HWC[first : first + len(number), left : left + number.shape[1]] = number
    return sheet_HWC


def tick_values(low: float, high: float, *, most: int) -> list[float]:
    """The round numbers from ``low`` to ``high``, at most so many: multiples of the least 1, 2 or 5 · 10^n that fits.

    Where 0 lies in the range it is one of them.
    """
    exponent = math.floor(math.log10((high - low) / most))
    for mantissa, power in [(1, 0), (2, 0), (5, 0), (1, 1), (2, 1), (5, 1)]:
        step = mantissa * 10.0 ** (exponent + power)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            break
    # Multiples are rounded in decimals, so that 3 · 0.1 reads 0.3.
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def _coloured(values_H: Map, limit: float, kind: BarKind | LaidOver) -> Bytes8:
    if kind == "grey":
        return gradient_image(np.tile(values_H[None, :, None], (3, 1, _THICKNESS)), limit=limit)
    bar_HW = np.tile(values_H[:, None], (1, _THICKNESS))
    if kind in get_args(LaidOver):
        grey_HWC = np.full((*bar_HW.shape, 3), _MID_GREY, np.uint8)
        return overlay(grey_HWC, bar_HW, signed=kind != "over-sequential", limit=limit)
    return (sequential if kind == "sequential" else diverging)(bar_HW, limit=limit)


def _number(value: float) -> Bytes8:
    """Cut to the rows of its ink, so that its middle is that of the digits."""
    text = f"{value:.6g}".replace("-", "\u2212")
    image_HWC = text_image(text, size=_LETTERS, width=text_width(text, size=_LETTERS) + 1)
    inked = np.flatnonzero((image_HWC < 200).any(axis=(1, 2)))
    return image_HWC[inked[0] : inked[-1] + 1]
