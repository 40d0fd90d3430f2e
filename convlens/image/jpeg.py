"""A JPEG's segments: those that say how to read its pixels, and how many there may be.

Pillow takes broken metadata for a broken image, and reads what comes before the pixels byte by byte in Python. So it
gets none that it does not need, and how much there is of the rest is bounded here.
"""

from __future__ import annotations

import re

from convlens.errors import ImageError
from convlens.image.bounds import JPEG_FILL, JPEG_SCANS, JPEG_SEGMENTS, JPEG_TABLES

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_NO_LENGTH = (0x00, 0x01, *range(0xD0, 0xD8))  # bytes of the pixels, a reserved marker, and restarts
_APP, _COM = range(0xE0, 0xF0), 0xFE
# Frames, tables of Huffman codes and of quantisation, conditions of arithmetic coding, restart intervals, line counts.
_TABLES = (*range(0xC0, 0xC8), *range(0xC9, 0xD0), 0xDB, 0xDC, 0xDD)
_EXIF = 0xE1
# What libjpeg reads of the APPn segments: JFIF and Adobe, each with the shortest length that it takes for one; and
# EXIF, for its orientation.
_APP_READ = {0xE0: (b"JFIF\0", 14), _EXIF: (b"Exif\0\0", 6), 0xEE: (b"Adobe", 12)}
_NOT_FILL = re.compile(rb"[^\xff]")
# A marker that is neither part of the pixels nor a restart.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def jpeg_of_pixels(data: bytes) -> bytes:
    """The same JPEG with only those APPn segments that say how to read its pixels, and EXIF for its orientation.

    libjpeg skips an APPn segment that is too short for its name, also one whose length is below its own two bytes;
    Pillow would take the file for damaged. What follows the start of the first scan stays as it is. Raises
    ImageTooLargeError for more segments, tables, scans or fill bytes than the bounds allow, ImageError for a marker
    that no reader may skip.
    """
    kept, at, segments, tables, has_exif = [data[:2]], 2, 0, 0, False
    while 0 <= (found := data.find(b"\xff", at)) < len(data) - 3:
        at, marker = found, data[found + 1]
        segments += 1
        if segments > JPEG_SEGMENTS.most:
            raise JPEG_SEGMENTS.refuse()
        if marker == _SOS:
            _check_scans(data, at)
            break
        if marker in (_SOI, _EOI):
            return b"".join(kept)  # for Pillow to refuse: there is no scan
        if marker == 0xFF:  # one of several that fill up to the marker
            rest = _NOT_FILL.search(data, at)
            at = rest.start() - 1 if rest else len(data)
            continue
        if marker in _NO_LENGTH:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if marker in _APP or marker == _COM:
            name, shortest = _APP_READ.get(marker, (b"", len(data)))
            if length - 2 >= shortest and data.startswith(name, at + 4) and not (marker == _EXIF and has_exif):
                kept.append(data[at:end])
                has_exif |= marker == _EXIF
        elif length < 2 or marker not in _TABLES:
            raise ImageError(f"a damaged JPEG (a segment {marker:#x} of {length} bytes); send the whole file")
        else:
            kept.append(data[at:end])
            tables += length
            JPEG_TABLES.require(tables)
        at = end
    return b"".join([*kept, data[found:]] if found >= 0 else kept)


def _check_scans(data: bytes, first: int) -> None:
    """ImageTooLargeError for too many scans, or too much between them; ``first`` is where the first one begins."""
    # Both searches take 1 ns a byte, the exact one 7. They see too much where more images follow in the same file.
    if data.count(bytes([0xFF, _SOS]), first) <= JPEG_SCANS.most and not _is_filled(data, first, len(data)):
        return
    at, scans, segments = first, 0, 0
    while (found := _MARKER.search(data, at)) and data[found.start() + 1] != _EOI:
        scans += data[found.start() + 1] == _SOS
        segments += 1
        if scans > JPEG_SCANS.most:
            raise JPEG_SCANS.refuse()
        if segments > JPEG_SEGMENTS.most:
            raise JPEG_SEGMENTS.refuse()
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    if _is_filled(data, first, found.start() if found else len(data)):
        raise JPEG_FILL.refuse()


def _is_filled(data: bytes, start: int, end: int) -> bool:
    # The marker's own first byte is one as well.
    return data.find(b"\xff" * (JPEG_FILL.most + 2), start, end + 1) >= 0
