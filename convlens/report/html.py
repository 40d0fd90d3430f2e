"""Values -> text that reads well and cannot break the page.

Encoded pictures -> what an ``<img>`` needs, without decoding them.
"""

from __future__ import annotations

import base64
import re
import struct
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from convlens.errors import ImageError

# C0 and C1 controls, lone surrogates, non-characters, and the overrides that make gpj.exe read exe.jpg
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def legible(value: Any) -> Any:
    """Text without the characters that HTML or UTF-8 forbid or that disguise it; anything else unchanged.

    A control character becomes its Unicode picture (NUL → ␀), so that it is seen rather than lost; a lone surrogate, as
    in a file name that is not UTF-8, and an explicit change of writing direction become U+FFFD. Newlines and tabs stay.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return UNPRINTABLE.sub(_stand_in, value)


def _stand_in(found: re.Match[str]) -> str:
    code = ord(found.group())
    if code == 0x7F:
        return "␡"
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"


def percent(share: float) -> str:
    """A share of one as a percentage with one decimal; only 0 itself reads 0.0 %, and only 1 reads 100.0 %."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def score(value: float, kind: str) -> str:
    """A target's score: probabilities as percentages, logits with two decimals and a true minus sign."""
    return percent(value) if kind == "probability" else f"{value:.2f}".replace("-", "−")


def milliseconds(value: float) -> str:
    """Whole milliseconds from ten upwards, one decimal below, thousands set apart by a narrow space."""
    return f"{value:.1f} ms" if value < 10 else f"{value:,.0f} ms".replace(",", "\u202f")


def title_of(method: str) -> str:
    """A method's name as words: ``guided_backprop`` → Guided backprop."""
    words = method.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
FEW_PIXELS = 128


@dataclass(frozen=True)
class Picture:
    """A data URI and how to show it: ``few_pixels`` asks for hard pixel edges, which would only hurt a photograph."""

    uri: Markup
    few_pixels: bool = False


def embed(encoded: bytes) -> Picture | None:
    """The picture as a data URI; None for no bytes. Raises ImageError for what is neither PNG nor JPEG."""
    if not encoded:
        return None
    uri = f"data:{media_type(encoded)};base64,{base64.b64encode(encoded).decode('ascii')}"
    # base64 has no character that HTML escapes; saying so saves a pass over megabytes.
    return Picture(Markup(uri), few_pixels=0 < png_width(encoded) < FEW_PIXELS)


def media_type(encoded: bytes) -> str:
    """The type by the first bytes: a name or a header may lie."""
    if encoded.startswith(PNG_SIGNATURE):
        return "image/png"
    if encoded.startswith(JPEG_SIGNATURE):
        return "image/jpeg"
    raise ImageError(f"a picture for the report begins with {encoded[:8]!r}; give encoded PNG or JPEG bytes")


def png_width(encoded: bytes) -> int:
    """Width in pixels, from the header; 0 where it is no PNG or the header is cut short."""
    if not encoded.startswith(PNG_SIGNATURE) or len(encoded) < 20:
        return 0
    return int(struct.unpack(">I", encoded[16:20])[0])
