"""Text as an image, in any script: each glyph from the first of Noto's typefaces that has it, laid out by libraqm.

The typefaces come with the packages ``manimgx_fonts`` and ``noto_cjk_sans_otc``, and libraqm (HarfBuzz for joined
letters, SheenBidi for right-to-left ones) is part of matplotlib, so a figure is the same on every machine.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from convlens.types import Bytes8

if TYPE_CHECKING:
    from matplotlib.font_manager import FontPath
    from matplotlib.ft2font import FT2Font

_INK, _PAPER = (20, 20, 20), (255, 255, 255)
_LINE_HEIGHT = 1.35  # from line to line, in letter sizes
_ITALIC = "NotoSans-Italic[wght].ttf"
# Latin, Greek and Cyrillic come first; emoji and symbols last, since they also have digits and marks of their own.
_ORDER = {"NotoSans[wght].ttf": 0, "NotoEmoji[wght].ttf": 2, "NotoSansSymbols[wght].ttf": 3}
_CHINESE = 2  # the face of the CJK collection that has the simplified forms; Japanese and Korean are in all of them
# They change the order of what follows and draw nothing, by which a name can be disguised.
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MARKS = frozenset("_-./")
# No line begins with them: they belong to the letter before. The zero-width joiner also binds the one after.
_JOINER = "\u200d"
_BOUND = ("Mn", "Mc", "Me", "Cf", "Sk")


def text_image(text: str, *, size: int, width: int) -> Bytes8:
    """The text as an image of that width: dark on white, broken between words where it is too long.

    ``size`` is the height of the letters in pixels. Words wider than the image are broken too, never within a letter
    and its marks. Letters that no typeface has, and invisible ones that reverse the writing direction, are drawn as
    their code points, such as [U+13000].
    """
    strips = [_strip(line, size) for line in _lines(drawable(text), size, width)]
    pitch = size * _LINE_HEIGHT
    # Letters taller than a line, such as Myanmar's, push the lines after them down.
    tops, bottom = [], 0.0
    for strip in strips:
        tops.append(round(bottom))
        bottom = max(bottom + pitch, round(bottom) + strip.height)
    sheet_HW = np.zeros((round(bottom) + size // 2, width), np.uint8)
    for top, strip in zip(tops, strips, strict=True):
        ink_HW = strip.ink_HW[:, :width]
        first = top + strip.above
        area = sheet_HW[first : first + len(ink_HW), : ink_HW.shape[1]]
        np.maximum(area, ink_HW[: len(area)], out=area)
    share_HW1 = sheet_HW[:, :, None] / 255
    return np.rint(share_HW1 * _INK + (1 - share_HW1) * _PAPER).astype(np.uint8)


def drawable(text: str) -> str:
    """The text with the code point, such as [U+13000], in place of each letter that no typeface has."""
    return "".join(
        letter if letter.isspace() or (letter not in _OVERRIDES and _has_glyph(letter)) else f"[U+{ord(letter):04X}]"
        for letter in text
    )


# ---- lines


def _lines(text: str, size: int, width: int) -> list[str]:
    lines = [""]
    for word in _pieces(text, size, width):
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size=size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _pieces(text: str, size: int, width: int) -> Iterator[str]:
    """The words; those wider than the image in pieces."""
    for word in text.split():
        rest = _letters(word)
        while len(rest) > 1 and text_width("".join(rest), size=size) > width:
            fits = next(
                n for n in range(len(rest) - 1, 0, -1) if n == 1 or text_width("".join(rest[:n]), size=size) <= width
            )
            fits = _after_a_mark(rest, fits)
            yield "".join(rest[:fits])
            rest = rest[fits:]
        yield "".join(rest)


def _after_a_mark(letters: list[str], fits: int) -> int:
    """Where to break: behind a file name's last mark that leaves the line half full, else where it is full."""
    marked = (n for n in range(fits, fits // 2, -1) if letters[n - 1] in _MARKS)
    return next(marked, fits)


def _letters(word: str) -> list[str]:
    """The letters, each with its marks."""
    letters: list[str] = []
    for letter in word:
        bound = unicodedata.category(letter) in _BOUND or (letters and letters[-1].endswith(_JOINER))
        if bound and letters:
            letters[-1] += letter
        else:
            letters.append(letter)
    return letters


def text_width(text: str, *, size: int) -> int:
    """Width of the text in one line, in pixels."""
    return math.ceil(_set_text(text, size).get_width_height()[0] / 64) if text else 0


# ---- glyphs


class _Strip:
    """One line's ink (0..255), ``above`` pixels below the top of its line; the line is ``height`` pixels high."""

    def __init__(self, ink_HW: Bytes8, descent: int, size: int) -> None:
        ascent = ink_HW.shape[0] - descent
        self.ink_HW, self.above = ink_HW, max(0, size - ascent)
        self.height = self.above + ink_HW.shape[0]


def _strip(line: str, size: int) -> _Strip:
    if not line:
        return _Strip(np.zeros((0, 0), np.uint8), 0, size)
    font = _set_text(line, size)
    font.draw_glyphs_to_bitmap(antialiased=True)
    return _Strip(np.array(font.get_image(), np.uint8), math.ceil(font.get_descent() / 64), size)


def _set_text(line: str, size: int) -> FT2Font:
    """The typefaces with this line laid out in them, its letters in the order in which they are seen."""
    from matplotlib.font_manager import get_font  # on first use: it takes a quarter of a second to load
    from matplotlib.ft2font import LoadFlags

    # get_font keeps one for each thread, since the layout is part of it.
    font = get_font(_typefaces())
    font.set_size(size, 72)
    font.set_text(line, 0.0, flags=LoadFlags.DEFAULT)
    return font


@cache
def _typefaces() -> list[str | FontPath]:
    """Paths of the typefaces, in the order in which they are asked for a glyph."""
    from matplotlib import font_manager

    noto = resources.files("manimgx_fonts")
    names = [file.name for file in noto.iterdir() if file.name.endswith(".ttf") and file.name != _ITALIC]
    names.sort(key=lambda name: (_ORDER.get(name, 1), name))
    chinese = resources.files("noto_cjk_sans_otc").joinpath("NotoSansCJK-Regular.ttc")
    # As str: FreeType opens the files itself, which lie in folders, as pip installs them.
    return [*(str(noto.joinpath(name)) for name in names), font_manager.FontPath(str(chinese), _CHINESE)]


@cache
def _has_glyph(letter: str) -> bool:
    # What joins, selects a variant or marks a direction shapes its neighbours and has no ink itself.
    if unicodedata.category(letter) == "Cf" or 0xFE00 <= ord(letter) <= 0xFE0F:
        return True
    return any(ord(letter) in letters for letters in _charmaps())


@cache
def _charmaps() -> tuple[frozenset[int], ...]:
    from matplotlib.font_manager import get_font

    return tuple(frozenset(get_font([path]).get_charmap()) for path in _typefaces())
