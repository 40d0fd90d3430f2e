"""The template environment of all pages: values become text that cannot break a page, images data URIs or links."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from convlens.errors import ImageError

# C0 and C1 controls, lone surrogates, non-characters, and the overrides that make gpj.exe read exe.jpg
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_ENDS_SCRIPT = re.compile("[<>&\u2028\u2029]")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_FEW_PIXELS = 128


# ---- templates


@cache
def environment() -> jinja2.Environment:
    """The jinja2 environment of the templates in this folder."""
    # autoescape and finalize act on every value, so that no template line can forget to escape or to clean one.
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=legible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "percent": percent,
        "chance": chance,
        "score": score,
        "milliseconds": milliseconds,
    }
    environment.filters.update(filters)
    return environment


def asset(name: str) -> Markup:
    """A style or a script of this folder, unescaped: it is our own file and not a value."""
    return Markup(_read(name))


def csp_hash(inline: str) -> str:
    """The source expression that lets exactly this inline style or script run, and no other (CSP level 2)."""
    # The page holds its script, so that it is one file; with the hash no other script runs, should one slip through.
    digest = hashlib.sha256(inline.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _read(name: str) -> str:
    return resources.files("convlens.report").joinpath(name).read_text(encoding="utf-8")


# ---- values


def legible(value: Any) -> Any:
    """Text without the characters that HTML or UTF-8 forbid or that disguise it; anything else unchanged.

    A control character becomes its visible symbol (NUL → ␀); a lone surrogate, as in a file name that is not UTF-8, and
    an explicit change of writing direction become U+FFFD. Newlines and tabs stay.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _UNPRINTABLE.sub(_visible_symbol, value)


def script_data(value: object) -> Markup:
    """JSON that no HTML parser can take for the end of the element it stands in."""
    # "</script>" within a string would end the element, "<!--" change how it is parsed; U+2028 and U+2029 end a line in
    # older JavaScript.
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(_ENDS_SCRIPT.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def _visible_symbol(match: re.Match[str]) -> str:
    code = ord(match.group())
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


def chance(probability: float, in_percent: bool) -> str:
    """A prediction's probability as a percentage, or as a number where the model makes no probabilities."""
    return percent(probability) if in_percent else score(probability, "logit")


def score(value: float, kind: str) -> str:
    """A target's score: probabilities as percentages, logits with two decimals and a true minus sign."""
    return percent(value) if kind == "probability" else f"{value:.2f}".replace("-", "−")


def milliseconds(value: float) -> str:
    """Whole milliseconds from ten upwards, one decimal below, thousands set apart by a narrow space."""
    return f"{value:.1f} ms" if value < 10 else f"{value:,.0f} ms".replace(",", "\u202f")


# ---- images


@dataclass(frozen=True)
class EmbeddedImage:
    """A data URI; ``few_pixels`` asks for hard pixel edges, which would only spoil a photograph."""

    uri: Markup
    few_pixels: bool = False


def embed_image(encoded: bytes) -> EmbeddedImage | None:
    """An encoded image as a data URI; None for no bytes. Raises ImageError for what is neither PNG nor JPEG."""
    if not encoded:
        return None
    # base64 has no character that HTML escapes; Markup saves the pass over megabytes that would look for one.
    uri = Markup(f"data:{_media_type(encoded)};base64,{base64.b64encode(encoded).decode('ascii')}")
    return EmbeddedImage(uri, few_pixels=0 < _png_width(encoded) < _FEW_PIXELS)


@dataclass(frozen=True)
class LinkedFile:
    """An image file by its address from the page, with its size in pixels, so that nothing jumps when it arrives."""

    address: str
    width: int
    height: int


def link_image(address: str, encoded: bytes) -> LinkedFile | None:
    """The image file at this address, which holds these bytes; None for no bytes. ImageError for no PNG or JPEG."""
    if not encoded:
        return None
    _media_type(encoded)
    with Image.open(io.BytesIO(encoded)) as image:  # reads the header only
        return LinkedFile(address, *image.size)


def _media_type(encoded: bytes) -> str:
    # By the first bytes: a file name or a header may be wrong.
    if encoded.startswith(_PNG_SIGNATURE):
        return "image/png"
    if encoded.startswith(_JPEG_SIGNATURE):
        return "image/jpeg"
    raise ImageError(f"an image for the report begins with {encoded[:8]!r}; give encoded PNG or JPEG bytes")


def _png_width(encoded: bytes) -> int:
    """Width in pixels, from the header, without decoding; 0 where it is no PNG or the header is cut short."""
    if not encoded.startswith(_PNG_SIGNATURE) or len(encoded) < 20:
        return 0
    return int(struct.unpack(">I", encoded[16:20])[0])
