"""What some bytes are, by their first ones."""

from __future__ import annotations

import struct
from typing import Literal

from convlens.errors import ImageError

Format = Literal["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"]
Size = tuple[int, int]
"""Width and height in pixels."""
Edges = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two lie outside."""

_ACCEPTED = "JPEG, PNG, WebP, GIF, BMP or TIFF"
_IMAGES: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II\x2a\x00", "TIFF"),
    (b"MM\x00\x2a", "TIFF"),
    (b"II\x2b\x00", "TIFF"),
    (b"MM\x00\x2b", "TIFF"),
)

# Not images, or images of a kind that is not read. Compared in lower case after white space and a byte-order mark.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML document"),
    (b"%pdf", "a PDF document"),
    (b"%!ps", "a PostScript document"),
    (b"data:", "a data: URL (decode its base64 part first)"),
    (b"/9j/", "a base64 text (decode it first)"),
    (b"ivborw0kggo", "a base64 text (decode it first)"),
    (b"http://", "a web address (fetch the image first)"),
    (b"https://", "a web address (fetch the image first)"),
    (b"{", "JSON"),
    (b"[", "JSON"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"8bps", "a Photoshop document"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cjxl ", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cjp  ", "a JPEG 2000 image"),
    (b"\x93numpy", "a numpy array"),
)
# By the brand of an ISO base media file (ftyp box).
_BRANDS = {b"avif": "an AVIF image", b"avis": "an AVIF image", b"heic": "a HEIC image", b"heix": "a HEIC image",
           b"mif1": "a HEIF image", b"msf1": "a HEIF image"}  # fmt: skip


def format_of(data: bytes) -> Format:
    """The image format by its first bytes; ImageError names what else they likely are."""
    for magic, name in _IMAGES:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    raise ImageError(f"{_likely(data)} is not an image that can be read; send a {_ACCEPTED} file")


def _likely(data: bytes) -> str:
    """What the bytes are, in words that begin a sentence."""
    if not data:
        return "an empty body (0 bytes)"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video or image container (ftyp)")
    head = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for magic, name in _OTHERS:
        if head.startswith(magic):
            return "an SVG drawing" if name == "an XML document" and b"<svg" in head else name
    return f"data of an unknown kind ({len(data)} bytes, beginning {data[:8].hex(' ')})"


def webp_size(data: bytes) -> Size | None:
    """Canvas size of a WebP (RFC 9649); None where the first chunk is of no known kind."""
    chunk, head = data[12:16], data[:30].ljust(30, b"\0")
    if chunk == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None
