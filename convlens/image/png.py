"""A PNG's chunks: those that describe its one still image, their checksums, and how many there may be.

Pillow takes a PNG's broken metadata for a broken image, but its broken pixels for sound ones; and each chunk takes it
microseconds.
"""

from __future__ import annotations

import struct
import zlib

from convlens.errors import ImageError
from convlens.image.bounds import PNG_CHUNKS, PNG_UNPACKED

_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # all chunks that PNG calls so, by their upper-case first letter
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
# First column and row of the seven parts of an interlaced PNG, and the steps to the next ones.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_UNPACKED_AT_ONCE = 2**18


def png_of_pixels(data: bytes) -> bytes:
    """The same PNG with only what describes its one still image, its pixels in one chunk, and EXIF for its orientation.

    Text and colour profiles (which may be compressed bombs) and animation are left out. Checksums count as in libpng: a
    wrong one of a critical chunk is an ImageError, an ancillary chunk with a wrong one is left out. So is an unknown
    critical chunk an ImageError. What follows a cut stays as it is, for Pillow to refuse. Raises ImageTooLargeError for
    more chunks than the bound allows.
    """
    kept, at, chunks, has_pixels = [data[:8]], 8, 0, False
    pixels: list[bytes] = []
    while at + 12 <= len(data):
        chunks += 1
        if chunks > PNG_CHUNKS.most:
            raise PNG_CHUNKS.refuse()
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        name, chunk = data[at + 4 : at + 8], data[at:end]
        if not name[0] & 0x20:
            _check_critical(name, chunk)
            if name == b"IDAT":
                pixels.append(chunk[8:-4])
                has_pixels = True
            else:
                kept += [*_as_chunk(pixels), chunk]
                pixels = []
        elif _is_needed(name, chunk, data, has_pixels=has_pixels):
            kept.append(_in_eight_bits(chunk, *data[24:26]) if name == b"tRNS" else chunk)
        at = end
        if name == b"IEND":
            return b"".join(kept)
    return b"".join([*kept, *_as_chunk(pixels), data[at:]])


def _as_chunk(pixels: list[bytes]) -> list[bytes]:
    """The contents of IDAT chunks as a single one, where there are any."""
    if not pixels:
        return []
    body = b"".join([b"IDAT", *pixels])
    return [(len(body) - 4).to_bytes(4, "big"), body, zlib.crc32(body).to_bytes(4, "big")]


def _is_needed(name: bytes, chunk: bytes, data: bytes, *, has_pixels: bool) -> bool:
    """Whether an ancillary chunk says how to read the pixels or which way up they are, and is sound."""
    if name == b"tRNS":
        return not has_pixels and _fits_colours(chunk, data[25]) and _has_right_crc(chunk)
    return name == b"eXIf" and _has_right_crc(chunk)


def check_unpacked(png: bytes) -> None:
    """ImageTooLargeError for more bytes of unpacked pixels than the bound allows."""
    if png[12:16] == b"IHDR" and len(png) >= 29 and png[25] in _CHANNELS:
        width, height = struct.unpack_from(">LL", png, 16)
        PNG_UNPACKED.require(_pixel_bytes(png), width * height)


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
