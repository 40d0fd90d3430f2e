"""What some bytes are, by their first ones, and what must be known of a file before Pillow may open it.

Pillow allocates a WebP's canvas, and warns of a GIF's size, while opening; it warns of odd metadata through Python's
process-wide filters, which no thread can silence for itself; and it takes broken metadata for a broken image, but a
PNG's broken pixels for sound ones. So these headers are read here first.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
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
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # all chunks that PNG calls so, by their upper-case first letter
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
# First column and row of the seven parts of an interlaced PNG, and the steps to the next ones.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_UNPACKED_AT_ONCE = 2**18
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_NO_LENGTH = (0x00, 0x01, *range(0xD0, 0xD8))  # bytes of the pixels, a reserved marker, and restarts
_APP, _COM = range(0xE0, 0xF0), 0xFE
# What libjpeg reads of the APPn segments: JFIF and Adobe, each with the shortest length that it takes for one; and
# EXIF, for its orientation.
_APP_READ = {0xE0: (b"JFIF\0", 14), 0xE1: (b"Exif\0\0", 6), 0xEE: (b"Adobe", 12)}
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


@dataclass(frozen=True)
class GifFrame:
    """The first frame of a GIF: the size of the screen, grown to hold it, and where it lies there."""

    screen: Size
    edges: Edges


def gif_frame(data: bytes) -> GifFrame | None:
    """A GIF's first frame, on a screen that grows to hold it, as in browsers and Pillow; None where there is none."""
    if len(data) < 13:
        return None
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    # Behind the screen descriptor and, where its top bit says so, a colour table of 2, 4, ... or 256 colours.
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    while at < len(data) and data[at] != ord(";"):
        if data[at] == ord(",") and at + 9 <= len(data):
            left, top, frame_width, frame_height = struct.unpack_from("<4H", data, at + 1)
            right, bottom = left + frame_width, top + frame_height
            return GifFrame((max(width, right), max(height, bottom)), (left, top, right, bottom))
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


def jpeg_of_pixels(data: bytes) -> bytes:
    """The same JPEG with only those APPn segments that say how to read its pixels, and EXIF for its orientation.

    libjpeg skips an APPn segment that is too short for its name, also one whose length is below its own two bytes;
    Pillow would take the file for damaged. What follows the start of the first scan stays as it is.
    """
    kept, at = [data[:2]], 2
    while 0 <= (found := data.find(b"\xff", at)) < len(data) - 3:
        at, marker = found, data[found + 1]
        if marker in (_SOI, _EOI, _SOS):
            break
        if marker == 0xFF or marker in _NO_LENGTH:  # 0xFF: one that fills up to the marker
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if marker in _APP or marker == _COM:
            name, shortest = _APP_READ.get(marker, (b"", len(data)))
            if length - 2 >= shortest and data.startswith(name, at + 4):
                kept.append(data[at:end])
        elif length < 2:
            break  # for Pillow to refuse
        else:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def png_of_pixels(data: bytes) -> bytes:
    """The same PNG with only what describes its one still image, and EXIF for its orientation.

    Text and colour profiles (which may be compressed bombs) and animation are left out. Checksums count as in libpng: a
    wrong one of a critical chunk is an ImageError, an ancillary chunk with a wrong one is left out. So is an unknown
    critical chunk an ImageError. What follows a cut stays as it is, for Pillow to refuse.
    """
    kept, at, has_pixels = [data[:8]], 8, False
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name, chunk = data[at + 4 : at + 8], data[at:end]
        if end > len(data):
            kept.append(chunk)
        elif not name[0] & 0x20:
            _check_critical(name, chunk)
            kept.append(chunk)
            has_pixels |= name == b"IDAT"
        elif name == b"eXIf" and _has_right_crc(chunk):
            kept.append(chunk)
        elif name == b"tRNS" and not has_pixels and _has_right_crc(chunk) and _fits_colours(chunk, data[25]):
            kept.append(_in_eight_bits(chunk, *data[24:26]))
        at = end
        if name == b"IEND":
            return b"".join(kept)
    return b"".join([*kept, data[at:]])


def is_interlaced(png: bytes) -> bool:
    return png[28] != 0


def has_all_pixels(png: bytes) -> bool:
    """Whether the pixel data of a PNG, as made by png_of_pixels, unpacks to as many bytes as its size asks for."""
    missing, at = _pixel_bytes(png), 8
    unpacker = zlib.decompressobj()
    while at + 12 <= len(png) and missing > 0:
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        packed = png[at + 8 : end - 4] if png[at + 4 : at + 8] == b"IDAT" else b""
        while packed and missing > 0:
            missing -= len(unpacker.decompress(packed, _UNPACKED_AT_ONCE))
            packed = unpacker.unconsumed_tail
        at = end
    return missing <= 0


def _pixel_bytes(png: bytes) -> int:
    width, height, depth, colour_type, _, _, interlaced = struct.unpack_from(">LL5B", png, 16)
    bits = depth * _CHANNELS[colour_type]
    sizes = (
        (-(-(width - left) // across), -(-(height - top) // down))
        for left, top, across, down in (_ADAM7 if interlaced else ((0, 0, 1, 1),))
    )
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0)


def _check_critical(name: bytes, chunk: bytes) -> None:
    shown = ascii(name.decode("latin-1"))
    if name not in _CRITICAL:
        raise ImageError(
            f"a PNG with a chunk {shown} that PNG does not define, and that readers may not skip; save it as plain PNG"
        )
    if not _has_right_crc(chunk):
        raise ImageError(f"a damaged PNG (the checksum of its {name.decode()} chunk is wrong); send the whole file")


def _fits_colours(transparency: bytes, colour_type: int) -> bool:
    """Whether a tRNS chunk has as many bytes as its image's colours ask for; libpng skips one that has not."""
    length = len(transparency) - 12
    return {0: length == 2, 2: length == 6, 3: 1 <= length <= 256}.get(colour_type, False)


def _has_right_crc(chunk: bytes) -> bool:
    return zlib.crc32(memoryview(chunk)[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _in_eight_bits(chunk: bytes, depth: int, colour_type: int) -> bytes:
    """A transparent colour as Pillow compares it: with 8-bit pixels, though the file gives it in its own depth."""
    if (depth, colour_type) not in {(2, 0), (4, 0), (16, 2)} or len(chunk) % 2:
        return chunk
    values = struct.unpack(f">{len(chunk) // 2 - 6}H", chunk[8:-4])
    scaled = [value >> 8 if depth == 16 else value * 255 // (2**depth - 1) & 255 for value in values]
    body = struct.pack(f">4s{len(scaled)}H", b"tRNS", *scaled)
    return chunk[:4] + body + struct.pack(">I", zlib.crc32(body))
