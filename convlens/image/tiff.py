"""The first directory of a TIFF structure: what Pillow may see of a TIFF, and which way up EXIF says an image is.

Pillow warns of damaged tags through Python's process-wide filters, which no thread can silence for itself. So it gets
none that it does not need, and damage in those is detected here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from convlens.errors import ImageError
from convlens.image.formats import Size

_WIDTH, _HEIGHT, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 274, 322, 323
# Tags that Pillow expects one value of; it warns of more.
_SINGLE = {_WIDTH, _HEIGHT, 259, 262, 266, _ORIENTATION, 277, 278, 284, 317, _TILE_WIDTH, _TILE_HEIGHT}
# All that describes pixels (TIFF 6.0): layout, compression, colour map, samples, JPEG tables, YCbCr, fax options.
_PIXEL_TAGS = _SINGLE | {258, 273, 279, 292, 293, 320, 324, 325, 332, 338, 339, 347, *range(512, 522), *range(529, 533)}
# Size of a value by the number of its type, BigTIFF's 64-bit ones (16) included.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


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


def orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, 1..8 by its specification; 0 where there is none or the block is damaged."""
    # As in browsers, metadata never makes an image unreadable, and XMP's orientation is not looked at.
    try:
        return _directory(exif.removeprefix(b"Exif\0\0")).number(_ORIENTATION)
    except ImageError:
        return 0


def tiff_of_pixels(data: bytes) -> tuple[bytes, Size]:
    """The same TIFF with only its first directory, and in that only what describes pixels; and its largest extent.

    Everything else (EXIF, GPS, colour profile, further pages) is left out, so its damage can neither matter nor be
    warned of. The extent is that of the image or of one tile, whichever has more pixels. Raises ImageError where a tag
    that is needed points outside the file.
    """
    first = _directory(data)
    # Of a tag that comes twice the first counts, and a directory is sorted by its tags (TIFF 6.0).
    kept = {entry.tag: entry for entry in reversed(first.entries) if _is_needed(entry)}
    entries = tuple(kept[tag] for tag in sorted(kept))
    _check_entries(entries, first.order, len(data))
    directory = _Directory(first.order, first.big, first.at, entries)
    return _rewritten(data, directory), _extent(directory)


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


def _extent(directory: _Directory) -> Size:
    image = directory.number(_WIDTH), directory.number(_HEIGHT)
    tile = directory.number(_TILE_WIDTH), directory.number(_TILE_HEIGHT)
    return max(image, tile, key=lambda size: size[0] * size[1])


def _rewritten(data: bytes, directory: _Directory) -> bytes:
    """The file with its first directory overwritten in place by fewer entries, and no further directory."""
    widths = (8, 8) if directory.big else (2, 4)
    count = len(directory.entries).to_bytes(widths[0], directory.order)
    block = count + b"".join(entry.raw for entry in directory.entries) + bytes(widths[1])
    return data[: directory.at] + block + data[directory.at + len(block) :]


def _damaged(what: str) -> ImageError:
    return ImageError(f"a damaged TIFF ({what}); send the whole file")
