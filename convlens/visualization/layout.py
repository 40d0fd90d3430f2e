"""Figures put together: text in the typeface that Pillow carries with it, images below and beside each other.

Images are uint8 RGB (H, W, 3); the paper is white.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convlens.types import Bytes8

_INK, _PAPER = (20, 20, 20), (255, 255, 255)
_LINE_HEIGHT = 1.35  # from line to line, in letter sizes


def text_image(text: str, *, size: int, width: int) -> Bytes8:
    """The text as an image of that width: dark on white, broken between words where it is too long.

    ``size`` is the height of the letters in pixels. Words wider than the image are broken too.
    """
    lines = _lines(text, size, width)
    height = round(len(lines) * size * _LINE_HEIGHT) + size // 2
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for n, line in enumerate(lines):
        pen.text((0, round(n * size * _LINE_HEIGHT)), line, fill=_INK, font=_font(size))
    return np.asarray(sheet)


def _text_width(text: str, *, size: int) -> int:
    """Width of the text in one line, in pixels."""
    return int(np.ceil(_font(size).getlength(text)))


def vstack(images: Sequence[Bytes8], *, gap: int = 0) -> Bytes8:
    """Images one below another, aligned at the left, ``gap`` pixels apart."""
    width = max(image.shape[1] for image in images)
    rows = [np.pad(image, ((0, gap), (0, width - image.shape[1]), (0, 0)), constant_values=255) for image in images]
    return np.concatenate(rows)[: -gap or None]


def hstack(images: Sequence[Bytes8], *, gap: int) -> Bytes8:
    """Images beside each other, aligned at the top, ``gap`` pixels apart."""
    return vstack([image.transpose(1, 0, 2) for image in images], gap=gap).transpose(1, 0, 2)


def add_margin(image_HWC: Bytes8, *, margin: int) -> Bytes8:
    """``margin`` pixels of paper on every side."""
    return np.pad(image_HWC, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)


def enlarge(image_HWC: Bytes8, factor: int) -> Bytes8:
    """Each pixel as a square of ``factor`` x ``factor``: what is drawn are the values, nothing in between."""
    return image_HWC.repeat(factor, axis=0).repeat(factor, axis=1)


def _lines(text: str, size: int, width: int) -> list[str]:
    lines = [""]
    for word in _pieces(_ascii(text), size, width):
        longer = f"{lines[-1]} {word}".strip()
        if _text_width(longer, size=size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _pieces(text: str, size: int, width: int) -> Iterator[str]:
    """The words; those wider than the image in pieces."""
    for word in text.split():
        rest = word
        while len(rest) > 1 and _text_width(rest, size=size) > width:
            fits = next(n for n in range(len(rest) - 1, 0, -1) if n == 1 or _text_width(rest[:n], size=size) <= width)
            yield rest[:fits]
            rest = rest[fits:]
        yield rest


def _ascii(text: str) -> str:
    """With a question mark for each letter that the typeface lacks."""
    return text.replace("×", "x").encode("ascii", "replace").decode("ascii")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
