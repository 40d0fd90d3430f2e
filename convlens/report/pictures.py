"""Encoded pictures -> what an ``<img>`` needs, without decoding them."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass

from markupsafe import Markup

from convlens.errors import ImageError

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
