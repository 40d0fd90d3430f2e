"""The first directory of a TIFF structure: how its pixels lie, what a decoder may see of it, and its orientation.

Pillow warns of damaged tags through Python's process-wide filters, which no thread can silence for itself. So it gets
none that it does not need, and damage in those is detected here. Pillow (13.0) also opens some layouts that it reads
wrong, as a comparison with tifffile over 4,000 showed: ``TiffLayout.pillow_reads`` says which it reads right.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from convlens.errors import ImageError
from convlens.image.formats import Size

_WIDTH, _HEIGHT, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 274, 322, 323
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES, _EXTRAS, _FORMATS = 258, 259, 262, 277, 284, 338, 339
_OFFSETS_AND_COUNTS = ((273, 279), (324, 325))  # of strips, of tiles
# Tags that Pillow expects one value of; it warns of more.
_SINGLE = {_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, 266, _ORIENTATION, _SAMPLES, 278, _PLANES, 317,
           _TILE_WIDTH, _TILE_HEIGHT}  # fmt: skip
# All that describes pixels (TIFF 6.0): layout, compression, colour map, samples, JPEG tables, YCbCr, fax options.
_PIXEL_TAGS = _SINGLE | {_BITS, 273, 279, 292, 293, 320, 324, 325, 332, _EXTRAS, _FORMATS, 347, *range(512, 522),
                         *range(529, 533)}  # fmt: skip
# Size of a value by the number of its type, BigTIFF's 64-bit ones (16) included.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}

_LONG, _LONG8 = 4, 16
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _LAB: 3}
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_STRAIGHT = 2  # the kind of extra sample that is alpha, and colours not multiplied by it
_MOST_SAMPLES = 6  # four of CMYK and two that mean nothing


@dataclass(frozen=True)
class TiffLayout:
    """How a TIFF's pixels are stored, in the words and numbers of TIFF 6.0."""

    photometric: int
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    extras: tuple[int, ...]
    separate: bool
    compressed: bool
    little: bool

    @classmethod
    def of(cls, numbers: Callable[[int], tuple[int, ...]], *, little: bool) -> TiffLayout:
        """The layout by a function from a tag to its values, () for one that is missing."""

        def first(tag: int, default: int) -> int:
            return (numbers(tag) or (default,))[0]

        samples = max(1, first(_SAMPLES, 1))
        bits, formats = numbers(_BITS) or (1,), numbers(_FORMATS) or (_UNSIGNED,)
        return cls(
            photometric=first(_PHOTOMETRIC, _WHITE_IS_ZERO),
            # Some writers give one value for all the samples.
            bits=bits * samples if len(bits) == 1 and samples <= _MOST_SAMPLES else bits,
            formats=tuple(set(formats)),
            extras=numbers(_EXTRAS),
            separate=samples > 1 and first(_PLANES, 1) == 2,
            compressed=first(_COMPRESSION, 1) != 1,
            little=little,
        )

    @property
    def colours(self) -> int:
        """Samples of a pixel that are colour; 0 where the colour model is not known."""
        return _COLOURS.get(self.photometric, 0)

    @property
    def white_is_zero(self) -> bool:
        return self.photometric == _WHITE_IS_ZERO

    @property
    def is_float(self) -> bool:
        return self.formats == (_FLOAT,)

    @property
    def is_cmyk(self) -> bool:
        return self.photometric == _CMYK

    @property
    def pillow_reads(self) -> bool:
        """Whether Pillow reads this layout, and reads it right."""
        depth, single = self.bits[0], len(self.bits) == 1
        if self.is_float:
            # libtiff has swapped the bytes of compressed pixels already when Pillow swaps them.
            return single and depth == 32 and self.colours == 1 and not (self.compressed and not self.little)
        if self.formats != (_UNSIGNED,) and self.formats != (4,):  # 4: undefined
            return False
        if self.separate:
            # Alpha is lost of grey, other extra samples confuse it, and uncompressed planes are read as if of 8 bits.
            is_plain = self.photometric == _RGB and set(self.extras) <= {_STRAIGHT}
            return is_plain and (depth == 8 or (depth == 16 and self.compressed))
        if depth == 16:
            is_grey = single and (self.photometric == _BLACK_IS_ZERO or (self.white_is_zero and self.little))
            return is_grey or self.photometric in (_RGB, _CMYK)
        return depth <= 8 or (depth == 12 and single)

    @property
    def samples_are_known(self) -> bool:
        """Whether the samples, once unpacked, are grey, RGB or CMYK of 8 or 16 bits or floats, alpha among them."""
        depths = {_UNSIGNED: (8, 16), _FLOAT: (16, 32, 64)}.get(self.formats[0], ()) if len(self.formats) == 1 else ()
        return (
            self.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK)
            and set(self.bits) <= set(depths)
            and len(set(self.bits)) == 1
            and self.colours <= len(self.bits) <= _MOST_SAMPLES
        )

    def check_brightness(self) -> None:
        """Raises ImageError for whole numbers of which nobody can say how bright they are."""
        if _SIGNED in self.formats:
            raise ImageError(
                f"a TIFF of signed {self.bits[0]}-bit whole numbers, whose brightness is not known; scale them to "
                "unsigned 8 or 16 bits, or to floats from 0 to 1"
            )
        if self.formats == (_UNSIGNED,) and max(self.bits) > 16:
            raise ImageError(
                f"a TIFF of {max(self.bits)}-bit whole numbers, whose brightness is not known; scale them to 8 or 16 "
                "bits, or to floats from 0 to 1"
            )

    def __str__(self) -> str:
        kind = "floats" if self.is_float else "whole numbers"
        stored = "in separate planes" if self.separate else "side by side"
        samples = f"{len(self.bits)} sample{'s' if len(self.bits) > 1 else ''}"
        return f"{samples} of {self.bits[0]}-bit {kind} {stored}, of photometric kind {self.photometric}"


@dataclass(frozen=True)
class TiffPixels:
    """A TIFF of its first image alone: the rewritten file, the largest extent in it, and what its tags say.

    The extent is that of the image or of one tile, whichever has more pixels.
    """

    data: bytes
    size: Size
    extent: Size
    orientation: int
    layout: TiffLayout


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

    def numbers(self, tag: int, data: bytes) -> tuple[int, ...]:
        """All whole numbers of a tag, which lie in its entry or elsewhere in the file; () where there is none."""
        entry = next((entry for entry in self.entries if entry.tag == tag), None)
        if entry is None or entry.kind not in _TYPE_BYTES:
            return ()
        values, width = self.values(entry, data), _TYPE_BYTES[entry.kind]
        return tuple(int.from_bytes(values[n : n + width], self.order) for n in range(0, len(values), width))

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


def tiff_of_pixels(data: bytes) -> TiffPixels:
    """The same TIFF with only its first directory, and in that only what describes pixels.

    Everything else (EXIF, GPS, colour profile, further pages) is left out, so its damage can neither matter nor be
    warned of. A BigTIFF becomes a plain one, since Pillow reads no big-endian BigTIFF. Raises ImageError where a tag
    that is needed, or the pixels that it points at, lie outside the file.
    """
    first = _directory(data)
    # Of a tag that comes twice the first counts, and a directory is sorted by its tags (TIFF 6.0).
    kept = {entry.tag: entry for entry in reversed(first.entries) if _is_needed(entry)}
    entries = tuple(kept[tag] for tag in sorted(kept))
    _check_entries(entries, first.order, len(data))
    directory = _Directory(first.order, first.big, first.at, entries)
    _check_pixels_lie_inside(directory, data)
    layout = TiffLayout.of(lambda tag: directory.numbers(tag, data), little=first.order == "little")
    return TiffPixels(
        data=_as_plain(data, directory) if first.big else _rewritten(data, directory),
        size=(directory.number(_WIDTH), directory.number(_HEIGHT)),
        extent=_extent(directory),
        orientation=directory.number(_ORIENTATION),
        layout=layout,
    )


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


def _check_pixels_lie_inside(directory: _Directory, data: bytes) -> None:
    for of_offsets, of_counts in _OFFSETS_AND_COUNTS:
        offsets, counts = directory.numbers(of_offsets, data), directory.numbers(of_counts, data)
        end = max((at + count for at, count in zip(offsets, counts, strict=False)), default=0)
        # Without counts (a tag that older writers leave out) nothing is known but where pixels begin.
        if max(end, *offsets, 0) > len(data):
            raise _damaged(f"its pixels reach to byte {max(end, *offsets)}, and it has {len(data)}")


def _rewritten(data: bytes, directory: _Directory) -> bytes:
    """The file with its first directory overwritten in place by fewer entries, and no further directory."""
    count = len(directory.entries).to_bytes(2, directory.order)
    block = count + b"".join(entry.raw for entry in directory.entries) + bytes(4)
    return b"".join([data[: directory.at], block, memoryview(data)[directory.at + len(block) :]])


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
