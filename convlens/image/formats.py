"""What some bytes are, by their first ones, and what must be known of a GIF, WebP or PNG before Pillow may open it.

Pillow allocates a WebP's canvas, and warns of a GIF's size, while opening; and it warns of odd metadata through
Python's process-wide filters, which no thread can silence for itself. So these headers are read here first.
"""

from __future__ import annotations

import struct
import zlib
from typing import Literal

from convlens.errors import ImageError

Format = Literal["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"]
Size = tuple[int, int]
"""Width and height in pixels."""

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
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"}  # of one still image
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


def gif_size(data: bytes) -> Size | None:
    """Screen size of a GIF, grown to hold its first frame as Pillow does; None where there is no frame."""
    if len(data) < 13:
        return None
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    # Behind the screen descriptor and, where its top bit says so, a colour table of 2, 4, ... or 256 colours.
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    while at < len(data) and data[at] != ord(";"):
        if data[at] == ord(",") and at + 9 <= len(data):
            left, top, frame_width, frame_height = struct.unpack_from("<4H", data, at + 1)
            return max(width, left + frame_width), max(height, top + frame_height)
        # An extension is a chain of sub-blocks; over any other byte Pillow steps as well.
        at = _after_blocks(data, at + 2) if data[at] == ord("!") else at + 1
    return None


def _after_blocks(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1


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


def png_of_pixels(data: bytes) -> bytes:
    """The same PNG with only what describes its one still image, and EXIF for its orientation.

    Text and colour profiles (which may be compressed bombs) and animation are left out. What follows a cut stays as it
    is, for Pillow to refuse.
    """
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        chunk = data[at:end]
        if chunk[4:8] in _PNG_CHUNKS or end > len(data):
            kept.append(_in_eight_bits(chunk, *data[24:26]) if chunk[4:8] == b"tRNS" else chunk)
        at = end
    return b"".join([*kept, data[at:]])


def _in_eight_bits(chunk: bytes, depth: int, colour_type: int) -> bytes:
    """A transparent colour as Pillow compares it: with 8-bit pixels, though the file gives it in its own depth."""
    if (depth, colour_type) not in {(2, 0), (4, 0), (16, 2)} or len(chunk) % 2:
        return chunk
    values = struct.unpack(f">{len(chunk) // 2 - 6}H", chunk[8:-4])
    scaled = [value >> 8 if depth == 16 else value * 255 // (2**depth - 1) & 255 for value in values]
    body = struct.pack(f">4s{len(scaled)}H", b"tRNS", *scaled)
    return chunk[:4] + body + struct.pack(">I", zlib.crc32(body))
