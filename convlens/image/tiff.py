"""The first directory of a TIFF structure: what a decoder may see of it, and which way up it says an image is.

Pillow warns of damaged tags through Python's process-wide filters, which no thread can silence for itself. So it gets
none that it does not need, and damage in those is detected here.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from convlens.errors import ImageError, ImageTooLargeError
from convlens.image.bounds import (
    TIFF_PAGES,
    TIFF_STRIPS,
    TIFF_STRIPS_APART,
    TIFF_TAGS,
    TIFF_TIMES_READ,
    TIFF_TIMES_UNPACKED,
    TIFF_UNPACKED,
    TIFF_UNPACKED_LZMA,
)
from convlens.image.formats import Size
from convlens.image.tiff_layout import (
    BITS,
    COMPRESSION,
    EXTRAS,
    FORMATS,
    MOST_SAMPLES,
    PHOTOMETRIC,
    PLANES,
    SAMPLES,
    TiffLayout,
)

_WIDTH, _HEIGHT, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 274, 322, 323
_ROWS = 278
_OFFSETS_AND_COUNTS = ((273, 279), (324, 325))  # of strips, of tiles
_OFFSETS = {offsets for offsets, _ in _OFFSETS_AND_COUNTS}
# Tags that Pillow expects one value of; it warns of more.
_SINGLE = {_WIDTH, _HEIGHT, COMPRESSION, PHOTOMETRIC, 266, _ORIENTATION, SAMPLES, _ROWS, PLANES, 317,
           _TILE_WIDTH, _TILE_HEIGHT}  # fmt: skip
# All that describes pixels (TIFF 6.0): layout, compression, colour map, samples, JPEG tables, YCbCr, fax options.
_PIXEL_TAGS = _SINGLE | {BITS, 273, 279, 292, 293, 320, 324, 325, 332, EXTRAS, FORMATS, 347, *range(512, 522),
                         *range(529, 533)}  # fmt: skip
# Size of a value by the number of its type, BigTIFF's 64-bit ones (16) included.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}

_LONG, _LONG8 = 4, 16
# Compressions by the numbers of TIFF 6.0 and of libtiff: none, LZW, Deflate (two), PackBits, Zstandard (two) and LZMA.
_LZMA = 34925
_QUICK = (1, 5, 8, 32946, 32773, 50000, 34926, _LZMA)


@dataclass(frozen=True)
class _Entry:
    """One tag. ``raw`` is the entry as it lies in the file, ``value`` its last 4 (BigTIFF: 8) bytes."""

    tag: int
    kind: int
    count: int
    raw: bytes
    value: bytes

    @property
    def length(self) -> int:
        return self.count * _TYPE_BYTES[self.kind]


@dataclass(frozen=True)
class _Directory:
    order: Literal["little", "big"]
    big: bool
    at: int
    entries: tuple[_Entry, ...]

    def number(self, tag: int) -> int:
        """The tag's first whole number, where it has one that fits inside its entry; else 0."""
        for entry in self.entries:
            if entry.tag == tag and entry.kind in _TYPE_BYTES:
                return int.from_bytes(entry.value[: _TYPE_BYTES[entry.kind]], self.order)
        return 0

    def numbers(self, tag: int, data: bytes) -> NDArray[Any]:
        """All whole numbers of a tag, which lie in its entry or elsewhere in the file; none where it is missing."""
        entry = next((entry for entry in self.entries if entry.tag == tag), None)
        if entry is None or entry.kind not in _TYPE_BYTES:
            return np.zeros(0, np.uint8)
        sign = "<" if self.order == "little" else ">"
        return np.frombuffer(self.values(entry, data), f"{sign}u{_TYPE_BYTES[entry.kind]}")

    def values(self, entry: _Entry, data: bytes) -> bytes:
        """The bytes of all values of an entry."""
        if entry.length <= len(entry.value):
            return entry.value[: entry.length]
        at = int.from_bytes(entry.value, self.order)
        return data[at : at + entry.length]


def orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, 1..8 by its specification; 0 where there is none or the block is damaged."""
    # As in browsers, metadata never makes an image unreadable, and XMP's orientation is not looked at.
    try:
        return _directory(exif.removeprefix(b"Exif\0\0")).number(_ORIENTATION)
    except ImageError:
        return 0


@dataclass(frozen=True)
class TiffPixels:
    """What describes the pixels of a TIFF's first image; ``orientation`` is 0 where the file says none."""

    size: Size
    orientation: int
    layout: TiffLayout
    _directory: _Directory

    @property
    def extent(self) -> Size:
        """That of the image or of one tile, whichever has more pixels."""
        return max(self.size, self._tile, key=lambda size: size[0] * size[1])

    @property
    def unpacked_bytes(self) -> int:
        """Size in memory of its largest strip or tile."""
        width, height = self._part
        return width * height * (self.layout.bits[0] if self.layout.separate else sum(self.layout.bits)) // 8

    @property
    def _part(self) -> Size:
        """Size of a tile, or of a strip but the last."""
        rows = self._directory.number(_ROWS) or self.size[1]
        return self._tile if any(self._tile) else (self.size[0], min(rows, self.size[1]))

    @property
    def _tile(self) -> Size:
        return self._directory.number(_TILE_WIDTH), self._directory.number(_TILE_HEIGHT)

    def check_inside(self, data: bytes) -> None:
        """ImageError where a strip or tile is missing or lies outside the file."""
        (width, height), (of_width, of_height) = self.size, self._part
        if 0 in (width, height, of_width, of_height):
            raise _damaged(f"its {width} x {height} pixels lie in parts of {of_width} x {of_height}")
        needed = -(-width // of_width) * -(-height // of_height) * (self.layout.samples if self.layout.separate else 1)
        given = max(len(self._directory.numbers(offsets, data)) for offsets in _OFFSETS)
        if given < needed:
            raise _damaged(f"it has {given} strips or tiles of the {needed} that its size needs")
        for of_offsets, of_counts in _OFFSETS_AND_COUNTS:
            offsets = self._directory.numbers(of_offsets, data).astype(float)
            counts = self._directory.numbers(of_counts, data)[: len(offsets)]
            # Without counts (a tag that older writers leave out) nothing is known but where pixels begin.
            offsets[: len(counts)] += counts
            end = int(offsets.max(initial=0))
            if end > len(data):
                raise _damaged(f"its pixels reach to byte {end}, and it has {len(data)}")

    def check_parts(self, data: bytes, *, by_pillow: bool) -> None:
        """ImageTooLargeError for more strips or unpacked bytes than the bounds allow, or strips that share too many.

        ImageError for a compression that only ``tifffile`` reads and that takes much longer than others.
        """
        pixels = self.size[0] * self.size[1]
        compression = self._directory.number(COMPRESSION) or 1
        strips = max(len(self._directory.numbers(tag, data)) for tag in _OFFSETS)
        (TIFF_STRIPS if by_pillow else TIFF_STRIPS_APART).require(strips, pixels)
        if not by_pillow and compression not in _QUICK:
            raise ImageError(
                f"a TIFF of this layout with compression {compression}; it may have none, or LZW, Deflate, PackBits, "
                "Zstandard or LZMA: save it with one of these"
            )
        if self.layout.compressed:
            unpacked = pixels * self.layout.samples * max(self.layout.bits) // 8
            if compression == _LZMA:
                TIFF_UNPACKED_LZMA.require(unpacked, pixels)
            else:
                TIFF_UNPACKED.require(unpacked, pixels, more=TIFF_TIMES_UNPACKED * len(data))
        for _, of_counts in _OFFSETS_AND_COUNTS:
            claimed = int(self._directory.numbers(of_counts, data).astype(float).sum())
            if claimed > TIFF_TIMES_READ * len(data):
                raise ImageTooLargeError(
                    f"a TIFF whose strips or tiles claim {claimed} bytes, and it has {len(data)}; at most "
                    f"{TIFF_TIMES_READ} times as many are allowed: save it anew"
                )

    def alone(self, data: bytes) -> bytes:
        """The TIFF ``data`` with only its first directory, and in that only what describes pixels.

        Everything else (EXIF, GPS, colour profile, further pages) is left out, so its damage can neither matter nor be
        warned of. A BigTIFF becomes a plain one, since Pillow reads no big-endian BigTIFF.
        """
        return (_as_plain if self._directory.big else _rewritten)(data, self._directory)


def read_tiff(data: bytes) -> TiffPixels:
    """The first directory of a TIFF; ImageError where it, or a tag that is needed, lies outside the file."""
    first = _directory(data)
    # Of a tag that comes twice the first counts, and a directory is sorted by its tags (TIFF 6.0).
    kept = {entry.tag: entry for entry in reversed(first.entries) if _is_needed(entry)}
    entries = tuple(kept[tag] for tag in sorted(kept))
    _check_entries(entries, first.order, len(data))
    directory = _Directory(first.order, first.big, first.at, entries)
    layout = TiffLayout.of(
        lambda tag: tuple(directory.numbers(tag, data)[: MOST_SAMPLES + 1].tolist()), little=first.order == "little"
    )
    size = directory.number(_WIDTH), directory.number(_HEIGHT)
    return TiffPixels(size, directory.number(_ORIENTATION), layout, directory)


def check_pages(data: bytes) -> None:
    """ImageTooLargeError for more pages than the bound allows; a chain of directories that is damaged ends there."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "<")
    pages = 0
    with suppress(struct.error):
        big = struct.unpack_from(order + "H", data, 2)[0] == 43
        of_count, size, of_next = ("Q", 20, "Q") if big else ("H", 12, "L")
        (at,) = struct.unpack_from(order + of_next, data, 8 if big else 4)
        while 0 < at < len(data):
            pages += 1
            if pages > TIFF_PAGES.most:
                raise TIFF_PAGES.refuse()
            (count,) = struct.unpack_from(order + of_count, data, at)
            end = at + struct.calcsize(of_count) + count * size
            at = struct.unpack_from(order + of_next, data, end)[0] if end < len(data) else 0


def _directory(data: bytes) -> _Directory:
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    try:
        big = struct.unpack_from(order + "H", data, 2)[0] == 43
        (at,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, min(at, len(data)))
    except struct.error as error:
        raise _damaged("it ends before its directory") from error
    size, first = (20, at + 8) if big else (12, at + 2)
    if not order or first + count * size > len(data):
        raise _damaged("its directory runs past its end")
    TIFF_TAGS.require(count)
    entries = tuple(_entry(data[n : n + size], order, big) for n in range(first, first + count * size, size))
    return _Directory("little" if order == "<" else "big", big, at, entries)


def _entry(raw: bytes, order: str, big: bool) -> _Entry:
    tag, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHL"), raw)
    return _Entry(tag, kind, count, raw, raw[12 if big else 8 :])


def _is_needed(entry: _Entry) -> bool:
    return entry.tag in _PIXEL_TAGS and entry.kind in _TYPE_BYTES


def _check_entries(entries: tuple[_Entry, ...], order: Literal["little", "big"], size: int) -> None:
    # The sum as well: together the tags may not claim more bytes than the file has.
    total = 0
    for entry in entries:
        if entry.tag in _SINGLE and entry.count != 1:
            raise _damaged(f"tag {entry.tag} has {entry.count} values instead of 1")
        if entry.length <= len(entry.value):
            continue
        total += entry.length
        if int.from_bytes(entry.value, order) + entry.length > size or total > size:
            raise _damaged(f"tag {entry.tag} points past its {size} bytes")


def _rewritten(data: bytes, directory: _Directory) -> bytes:
    """The file with its first directory overwritten in place by fewer entries, and no further directory."""
    count = len(directory.entries).to_bytes(2, directory.order)
    block = count + b"".join(entry.raw for entry in directory.entries) + bytes(4)
    return b"".join([memoryview(data)[: directory.at], block, memoryview(data)[directory.at + len(block) :]])


def _as_plain(data: bytes, directory: _Directory) -> bytes:
    """A BigTIFF as a plain TIFF: its 64-bit numbers in 32 bits, and its directory behind everything else."""
    order = directory.order
    kept = [(entry, _in_32_bits(entry, directory, data)) for entry in directory.entries]
    at = len(data) + len(data) % 2
    outside = at + 2 + 12 * len(kept) + 4
    rows, tail = [], b""
    for entry, values in kept:
        place = values.ljust(4, b"\0") if len(values) <= 4 else (outside + len(tail)).to_bytes(4, order)
        numbers = (entry.tag, 2), (_LONG if entry.kind == _LONG8 else entry.kind, 2), (entry.count, 4)
        rows.append(b"".join(number.to_bytes(width, order) for number, width in numbers) + place)
        tail += values if len(values) > 4 else b""
    magic = b"II*\0" if order == "little" else b"MM\0*"
    head = magic + at.to_bytes(4, order)
    block = len(kept).to_bytes(2, order) + b"".join(rows) + bytes(4) + tail
    return b"".join([head, memoryview(data)[8:], bytes(len(data) % 2), block])


def _in_32_bits(entry: _Entry, directory: _Directory, data: bytes) -> bytes:
    values = directory.values(entry, data)
    if entry.kind != _LONG8:
        return values
    numbers = (int.from_bytes(values[n : n + 8], directory.order) for n in range(0, len(values), 8))
    # One too large points outside any file that can be read here.
    return b"".join(min(number, 2**32 - 1).to_bytes(4, directory.order) for number in numbers)


def _damaged(what: str) -> ImageError:
    return ImageError(f"a damaged TIFF ({what}); send the whole file")
