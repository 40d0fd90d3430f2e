"""Which kind of file some bytes are: one of six picture formats, or a well-known thing that is none of them."""

from __future__ import annotations

from typing import Literal

from convlens.errors import ImageError

Format = Literal["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"]

ACCEPTED = "JPEG, PNG, WebP, GIF, BMP or TIFF"

_PICTURES: tuple[tuple[bytes, Format], ...] = (
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

# Not pictures, or pictures of a kind that is not read. Compared in lower case after white space and a byte-order mark.
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
    (b"http://", "a web address (fetch the picture first)"),
    (b"https://", "a web address (fetch the picture first)"),
    (b"{", "JSON"),
    (b"[", "JSON"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"8bps", "a Photoshop document"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cjxl ", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cjp  ", "a JPEG 2000 picture"),
    (b"\x93numpy", "a numpy array"),
)

_BRANDS = {b"avif": "an AVIF picture", b"avis": "an AVIF picture", b"heic": "a HEIC picture", b"heix": "a HEIC picture",
           b"mif1": "a HEIF picture", b"msf1": "a HEIF picture"}  # fmt: skip


def format_of(data: bytes) -> Format:
    """The picture format by its first bytes; ImageError names the likely thing where it is none."""
    for magic, name in _PICTURES:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    raise ImageError(f"{_likely(data)} is not a picture that can be read; send a {ACCEPTED} file")


def _likely(data: bytes) -> str:
    if not data:
        return "an empty body (0 bytes)"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a film or picture container (ftyp)")
    head = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for magic, name in _OTHERS:
        if head.startswith(magic):
            return "an SVG drawing" if name == "an XML document" and b"<svg" in head else name
    return f"data of an unknown kind ({len(data)} bytes, beginning {data[:8].hex(' ')})"
