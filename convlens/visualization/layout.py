"""Figures put together: words in the typeface that Pillow carries with it, pictures below and beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convlens.types import Bytes8

_INK, _PAPER = (20, 20, 20), (255, 255, 255)
_LEADING = 1.35  # of the size, from line to line


def text_image(text: str, *, size: int, width: int) -> Bytes8:
    """The text as a picture of that width: dark on white, broken between words where it is too long.

    ``size`` is the height of the letters in pixels. Words wider than the picture are broken too.
    """
    lines = _lines(text, size, width)
    height = round(len(lines) * size * _LEADING) + size // 2
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for n, line in enumerate(lines):
        pen.text((0, round(n * size * _LEADING)), line, fill=_INK, font=_font(size))
    return np.asarray(sheet)


def text_width(text: str, *, size: int) -> int:
    """Pixels that the text takes in one line."""
    return int(np.ceil(_font(size).getlength(text)))


def vstack(pictures: Sequence[Bytes8], *, gap: int = 0) -> Bytes8:
    """Pictures one below another, at the left, on white paper."""
    width = max(picture.shape[1] for picture in pictures)
    rows = [np.pad(each, ((0, gap), (0, width - each.shape[1]), (0, 0)), constant_values=255) for each in pictures]
    return np.concatenate(rows)[: -gap or None]


def hstack(pictures: Sequence[Bytes8], *, gap: int) -> Bytes8:
    """Pictures beside each other, at the top, on white paper."""
    return vstack([picture.transpose(1, 0, 2) for picture in pictures], gap=gap).transpose(1, 0, 2)


def add_margin(picture_HWC: Bytes8, *, margin: int) -> Bytes8:
    """White paper all around."""
    return np.pad(picture_HWC, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)


def enlarge(picture_HWC: Bytes8, factor: int) -> Bytes8:
    """Each pixel as a square of so many: what is drawn are the values, nothing in between."""
    return picture_HWC.repeat(factor, axis=0).repeat(factor, axis=1)


def _lines(text: str, size: int, width: int) -> list[str]:
    lines = [""]
    for word in _pieces(_in_ascii(text), size, width):
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size=size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _pieces(text: str, size: int, width: int) -> Iterator[str]:
    """The words, those cut that are wider than the picture."""
    for word in text.split():
        left = word
        while len(left) > 1 and text_width(left, size=size) > width:
            fits = next(n for n in range(len(left) - 1, 0, -1) if n == 1 or text_width(left[:n], size=size) <= width)
            yield left[:fits]
            left = left[fits:]
        yield left


def _in_ascii(text: str) -> str:
    """The typeface has no other letters; a question mark says that there was one."""
    return text.replace("×", "x").encode("ascii", "replace").decode("ascii")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
