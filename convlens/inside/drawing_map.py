"""A map of pictures as one picture: thumbnails at their places, framed in the colour of their label."""

from __future__ import annotations

import colorsys
import io
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from convlens.figures import framed, lettered, side_by_side, stacked
from convlens.types import Bytes8, Floats

SHEET, COLOURS = 1600, 12
_GREY = (138, 143, 152)
_SWATCH, _SIZE, _COLUMN = 14, 15, 300
_HIDDEN = 0.5  # of a thumbnail, at most, by those drawn before it; else it is a dot

Colour = tuple[int, int, int]


def colours_of(labels: Sequence[str]) -> dict[str, Colour]:
    """The commonest labels' colours, evenly around the circle; what has none is drawn grey."""
    common = [label for label, _ in Counter(label for label in labels if label).most_common(COLOURS)]
    return {label: _colour(n / len(common)) for n, label in enumerate(common)}


def map_picture(coordinates_N2: Floats, labels: Sequence[str], thumbnails: Sequence[bytes], *, caption: str) -> Bytes8:
    """A white square with every picture at its place, the second axis upwards, a legend and the caption below.

    Where too little of a thumbnail would be seen, and where there is none, a dot of the label's colour stands for it.
    """
    colours = colours_of(labels)
    sheet = Image.new("RGB", (SHEET, SHEET), (255, 255, 255))
    side = _side(len(coordinates_N2), has_thumbnails=any(thumbnails))
    taken = np.zeros((SHEET, SHEET), bool)
    places = _places(coordinates_N2, side)
    colour_N = [colours.get(label, _GREY) for label in labels]
    each = zip(places, thumbnails, colour_N, strict=True)
    as_pictures = [_drawn(sheet, taken, place, side, data, colour) for place, data, colour in each]
    pen = ImageDraw.Draw(sheet)
    for (x, y), colour, drawn in zip(places, colour_N, as_pictures, strict=True):
        if not drawn:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    parts = [np.asarray(sheet), *_legend(colours, Counter(labels)), lettered(caption, size=_SIZE, width=SHEET)]
    return framed(stacked(parts, gap=12), margin=16)


def _drawn(
    sheet: Image.Image, taken: np.ndarray, place: tuple[int, int], side: int, data: bytes, colour: Colour
) -> bool:
    x, y = place[0] - side // 2, place[1] - side // 2
    spot = taken[max(y, 0) : y + side, max(x, 0) : x + side]
    if not data or spot.mean() > _HIDDEN:
        return False
    with Image.open(io.BytesIO(data)) as picture:
        small = picture.convert("RGB").resize((side - 4, side - 4), Image.Resampling.LANCZOS)
    sheet.paste(colour, (x, y, x + side, y + side))
    sheet.paste(small, (x + 2, y + 2))
    spot[:] = True
    return True


def _side(count: int, *, has_thumbnails: bool) -> int:
    """Of a thumbnail, so that they would fill about the sheet if they lay evenly."""
    return int(min(72, max(20, 1.1 * SHEET / math.sqrt(count)))) if has_thumbnails else 6


def _places(coordinates_N2: Floats, side: int) -> list[tuple[int, int]]:
    low_2, high_2 = coordinates_N2.min(axis=0), coordinates_N2.max(axis=0)
    share = (SHEET - side - 8) / max(float((high_2 - low_2).max()), 1e-12)
    middle_2 = (low_2 + high_2) / 2
    across, up = (share * (coordinates_N2 - middle_2)).T
    return [(round(SHEET / 2 + x), round(SHEET / 2 - y)) for x, y in zip(across.tolist(), up.tolist(), strict=True)]


def _legend(colours: dict[str, Colour], counts: Counter[str]) -> list[Bytes8]:
    items = []
    for label, colour in colours.items():
        swatch = np.full((_SWATCH, _SWATCH, 3), colour, np.uint8)
        words = lettered(f"{label[:28]} ({counts[label]})", size=_SIZE, width=_COLUMN - _SWATCH - 8)
        items.append(side_by_side([swatch, words], gap=8))
    columns = SHEET // (_COLUMN + 12)
    return [side_by_side(items[n : n + columns], gap=12) for n in range(0, len(items), columns)]


def _colour(hue: float) -> Colour:
    red, green, blue = colorsys.hls_to_rgb(hue, 0.45, 0.7)
    return round(255 * red), round(255 * green), round(255 * blue)
