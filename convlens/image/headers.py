"""What must be known of a GIF, WebP or PNG before Pillow may open it.

Pillow allocates a WebP's canvas, and warns of a GIF's size, while opening; and it warns of odd metadata through
Python's process-wide filters, which no thread can silence for itself. So these headers are read here first.
"""

from __future__ import annotations

import struct
import zlib

Size = tuple[int, int]

_PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"}


def gif_size(data: bytes) -> Size | None:
    """Screen size of a GIF, grown to hold its first frame as Pillow does; None where there is no frame."""
    if len(data) < 13:
        return None
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    while at < len(data) and data[at] != ord(";"):
        if data[at] == ord(",") and at + 9 <= len(data):
            left, top, frame_width, frame_height = struct.unpack_from("<4H", data, at + 1)
            return max(width, left + frame_width), max(height, top + frame_height)
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
    """The same PNG with only what describes its one still picture, and EXIF for its orientation.

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
