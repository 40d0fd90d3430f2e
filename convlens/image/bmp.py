"""BMPs that Pillow (13.0) refuses or gets wrong: channels in bit fields, alpha among them, and run lengths."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convlens.errors import ImageError
from convlens.image.bounds import BMP_RUNS
from convlens.image.formats import Size
from convlens.image.modes import on_white, row_bands
from convlens.types import Bytes8, no_op

_FILE_HEADER = 14
_RGB, _RLE8, _RLE4, _BITFIELDS, _ALPHA_BITFIELDS = 0, 1, 2, 3, 6
# Header sizes that hold masks of their own: of three channels, and of alpha as well. OS/2's header of 64 bytes numbers
# its compressions differently and is left to Pillow.
_WITH_MASKS, _WITH_ALPHA = (52, 56, 108, 124), (56, 108, 124)
_OF_HEX = bytes(int(chr(code), 16) if chr(code) in "0123456789abcdef" else 0 for code in range(256))
_RUNS_OF_BLOCK = 10_000
_MASKS_OF_555 = (0x7C00, 0x3E0, 0x1F, 0)


@dataclass(frozen=True)
class Bmp:
    """What a BMP's header says. ``masks`` are of red, green, blue and alpha, 0 where there is none."""

    size: Size
    top_down: bool
    bits: int
    compression: int
    offset: int
    palette: bytes
    masks: tuple[int, int, int, int]

    @property
    def has_runs(self) -> bool:
        return (self.compression, self.bits) in {(_RLE8, 8), (_RLE4, 4)}

    @property
    def has_fields(self) -> bool:
        return any(self.masks)


def read_header(data: bytes) -> Bmp | None:
    """The header of a BMP with bit fields, 16-bit pixels or run lengths; None for another, which Pillow reads."""
    if len(data) < _FILE_HEADER + 40:
        return None
    (offset, header_size, width, height, _, bits, compression) = struct.unpack_from("<LLllHHL", data, 10)
    if header_size not in (40, *_WITH_MASKS):
        return None
    (colours,) = struct.unpack_from("<L", data, 46)
    end = _FILE_HEADER + header_size
    masks = _masks(data, header_size, bits, compression)
    palette = data[end : min(end + 4 * min(colours or 256, 256), max(offset, end))]
    bmp = Bmp((width, abs(height)), height < 0, bits, compression, offset or end, palette, masks)
    if width < 1 or height == 0 or not (bmp.has_runs or bmp.has_fields):
        return None
    return bmp


def decode(data: bytes, bmp: Bmp, *, on_block: Callable[[], None] = no_op) -> Image.Image:
    """The image as RGB, on white where it is transparent or where run lengths leave out pixels, as in browsers.

    Pixels of a run beyond the end of its row are dropped. Calls ``on_block`` now and then. Raises ImageError where the
    data ends early, ImageTooLargeError for more run lengths than the bound allows.
    """
    return _of_runs(data, bmp, on_block) if bmp.has_runs else _of_fields(data, bmp)


def _masks(data: bytes, header_size: int, bits: int, compression: int) -> tuple[int, int, int, int]:
    if bits == 16 and compression == _RGB:
        return _MASKS_OF_555
    if bits not in (16, 32) or compression not in (_BITFIELDS, _ALPHA_BITFIELDS):
        return 0, 0, 0, 0
    # They follow the shortest header and lie in the longer ones, at the same place.
    red, green, blue, alpha = struct.unpack("<4L", data[54:70].ljust(16, b"\0"))
    has_alpha = compression == _ALPHA_BITFIELDS or header_size in _WITH_ALPHA
    return red, green, blue, alpha if has_alpha else 0


def _of_fields(data: bytes, bmp: Bmp) -> Image.Image:
    width, height = bmp.size
    row_bytes = (width * bmp.bits + 31) // 32 * 4
    # The last row's padding may be missing.
    if len(data) < bmp.offset + row_bytes * (height - 1) + width * bmp.bits // 8:
        raise _ends_early()
    fields = [_Field.of_mask(mask) for mask in (bmp.masks if bmp.masks[3] else bmp.masks[:3])]
    image = Image.new("RGB", bmp.size)
    for top, bottom in row_bands(bmp.size):
        start, count = bmp.offset + top * row_bytes, (bottom - top) * row_bytes
        raw = np.frombuffer(data[start : start + count].ljust(count, b"\0"), f"<u{bmp.bits // 8}")
        codes_HW = raw.reshape(bottom - top, -1)[:, :width]
        levels_HWC = np.stack([field.levels(codes_HW) for field in fields], -1)
        if bmp.top_down:
            image.paste(on_white(levels_HWC), (0, top))
        else:
            image.paste(on_white(levels_HWC[::-1]), (0, height - bottom))
    return image


@dataclass(frozen=True)
class _Field:
    """One channel's bits in a pixel: how far to shift them down, and their greatest value."""

    shift: int
    most: int

    @classmethod
    def of_mask(cls, mask: int) -> _Field:
        shift = (mask & -mask).bit_length() - 1 if mask else 0
        most = mask >> shift
        if most & (most + 1):
            raise ImageError(f"a BMP whose channel mask {mask:#x} has a gap; save it with 24 bits, or as PNG")
        return cls(shift, most)

    def levels(self, codes_HW: NDArray[Any]) -> Bytes8:
        """0..255, rounded, of this channel."""
        values_HW = (codes_HW >> self.shift) & self.most
        levels_HW: Bytes8 = np.rint(values_HW * (255 / max(1, self.most))).astype(np.uint8)
        return levels_HW


def _of_runs(data: bytes, bmp: Bmp, on_block: Callable[[], None]) -> Image.Image:
    pixels, missing = _unpacked(data, bmp, on_block)
    direction = 1 if bmp.top_down else -1
    image = Image.frombytes("P", bmp.size, pixels, "raw", "P", 0, direction)
    image.putpalette(bmp.palette[: len(bmp.palette) // 4 * 4], "BGRX")
    rgb = image.convert("RGB")
    if any(missing):
        rgb.paste("white", mask=Image.frombytes("L", bmp.size, missing, "raw", "L", 0, direction))
    return rgb


def _unpacked(data: bytes, bmp: Bmp, on_block: Callable[[], None]) -> tuple[bytearray, bytearray]:
    """The palette index of each pixel, in the order of the file's rows; and 255 for each that the runs leave out."""
    (width, height), packs_two = bmp.size, bmp.bits == 4
    runs = [bytes([code >> 4, code & 15]) * 128 if packs_two else bytes([code]) * 255 for code in range(256)]
    pixels, missing = bytearray(width * height), bytearray(width * height)
    at, end, x, y = bmp.offset, len(data) - 1, 0, 0
    left = BMP_RUNS.allowed(width * height)
    while y < height and at < end:
        if not left % _RUNS_OF_BLOCK:
            on_block()
        if not left:
            raise BMP_RUNS.refuse(width * height)
        left -= 1
        count, value = data[at], data[at + 1]
        at += 2
        if count:  # the same pixel, or pair of pixels, again and again
            if x < width:
                count = min(count, width - x)
                start = y * width + x
                pixels[start : start + count] = runs[value][:count]
                x += count
        elif value > 2:  # pixels one by one, filled up to a whole number of 16 bits
            length = (value + 1) // 2 if packs_two else value
            packed = data[at : at + length]
            if len(packed) < length:
                raise _ends_early()
            at += length + length % 2
            row = packed.hex().encode().translate(_OF_HEX)[:value] if packs_two else packed
            row = row[: width - x]
            start = y * width + x
            pixels[start : start + len(row)] = row
            x += len(row)
        else:  # on to the next row, to the end, or some pixels right and some rows on
            before = y * width + x
            if value == 2:
                if at >= end:
                    break
                x, y = min(width, x + data[at]), y + data[at + 1]
                at += 2
            else:
                x, y = 0, y + 1 if value == 0 else height
            if skipped := min(y * width + x, width * height) - before:
                missing[before : before + skipped] = b"\xff" * skipped
    if y * width + x < width * height:
        raise _ends_early()
    return pixels, missing


def _ends_early() -> ImageError:
    return ImageError("a BMP whose pixel data ends before the image is complete; send the whole file")
