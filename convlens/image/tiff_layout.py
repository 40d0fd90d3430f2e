"""How a TIFF's pixels are stored, and which of these layouts Pillow reads right.

Pillow (13.0) opens some that it reads wrong, as a comparison with tifffile over 4,000 of them showed: grey with alpha
in planes stored apart comes out white, and big-endian floats that are compressed come out as noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convlens.errors import ImageError

# Tags of TIFF 6.0, and values of theirs.
BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANES, EXTRAS, FORMATS = 258, 259, 262, 277, 284, 338, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _LAB: 3}
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_STRAIGHT = 2  # the kind of extra sample that is alpha, and colours not multiplied by it
MOST_SAMPLES = 6  # four of CMYK and two that mean nothing


@dataclass(frozen=True)
class TiffLayout:
    """How a TIFF's pixels are stored, in the words and numbers of TIFF 6.0."""

    photometric: int
    samples: int
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

        samples = max(1, first(SAMPLES, 1))
        bits, formats = numbers(BITS) or (1,), numbers(FORMATS) or (_UNSIGNED,)
        return cls(
            photometric=first(PHOTOMETRIC, _WHITE_IS_ZERO),
            samples=samples,
            # Some writers give one value for all the samples.
            bits=bits * samples if len(bits) == 1 and samples <= MOST_SAMPLES else bits,
            formats=tuple(set(formats)),
            extras=numbers(EXTRAS),
            separate=samples > 1 and first(PLANES, 1) == 2,
            compressed=first(COMPRESSION, 1) != 1,
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
            and self.colours <= self.samples == len(self.bits) <= MOST_SAMPLES
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
