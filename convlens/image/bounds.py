"""How many parts a file may have, so that no accepted bytes take longer to read than 0.5 s and 30 ms a megapixel.

Limits on bytes and pixels do not bound that time: 5 MB of empty PNG chunks took 1.6 s, 100 scans over one JPEG 3.5 s.
Each bound here is what fits, by the time that one part was measured to take (benchmarks/reading.py, seconds of one
core), and lies far above what encoders write.
"""

from __future__ import annotations

from dataclasses import dataclass

from convlens.errors import ImageTooLargeError

_ALLOWED_S, _ALLOWED_S_PER_MEGAPIXEL = 0.5, 0.03


def allowed_seconds(pixels: int) -> float:
    """How long reading an accepted file of so many pixels may take on one core."""
    return _ALLOWED_S + _ALLOWED_S_PER_MEGAPIXEL * pixels / 1e6


@dataclass(frozen=True)
class Bound:
    """At most so many ``parts`` in a file of a kind, and more for each megapixel."""

    kind: str
    parts: str
    most: int
    advice: str
    per_megapixel: int = 0

    def require(self, count: int, pixels: int = 0, *, more: int = 0) -> None:
        """ImageTooLargeError for more parts than an image of so many pixels may have, and ``more``."""
        most = self.allowed(pixels) + more
        if count > most:
            raise ImageTooLargeError(
                f"a {self.kind} of {count} {self.parts}; at most {most} are allowed: {self.advice}"
            )

    def refuse(self, pixels: int = 0) -> ImageTooLargeError:
        """The error where counting has stopped at the bound."""
        most = self.allowed(pixels)
        return ImageTooLargeError(f"a {self.kind} of more than {most} {self.parts}, which is the most: {self.advice}")

    def allowed(self, pixels: int) -> int:
        return self.most + self.per_megapixel * pixels // 10**6


_AGAIN = "save it anew"

# A scan refines coefficients at 0.7 ms a megapixel where all are 0, and at 5 ns a bit where they are not. Encoders
# write at most 6 scans a component, 24 in all (libjpeg's own script: 10).
JPEG_SCANS = Bound("JPEG", "scans", 32, "save it with fewer, or as a baseline JPEG")
# Of a JPEG inside a TIFF; libtiff counts while it reads, and writes 1.
JPEG_SCANS_IN_TIFF = 12
# Each takes Pillow's parser 1 to 6 µs. The largest metadata that 20 MB hold are 320 of them.
JPEG_SEGMENTS = Bound("JPEG", "segments", 4096, "save it without its metadata")
# Pillow reads quantisation tables at 50 ns a byte; a file needs less than 3,000 bytes of tables.
JPEG_TABLES = Bound("JPEG", "bytes of tables", 2**18, _AGAIN)
# libjpeg starts over at the first fill byte whenever Pillow hands it the next 64 kB: the time grows with the square.
JPEG_FILL = Bound("JPEG", "fill bytes in a row", 1023, _AGAIN)

# 1.5 µs each here, and 5 more in Pillow for those that it sees. Encoders write one for every 2 to 64 kB.
PNG_CHUNKS = Bound("PNG", "chunks", 2**15, "save it with larger ones and without its metadata")
# 7 ns each for Paeth's filter over rows of noise that repeat, and 2 for the second look at whether all are there.
PNG_UNPACKED = Bound("PNG", "bytes once unpacked", 2**25, "save it with 8 bits a sample", per_megapixel=4 * 10**6)

# 0.1 µs each. XMP, whose text GIF readers walk through as if it were blocks, makes some hundred.
GIF_BLOCKS = Bound("GIF", "blocks before its first image", 2**16, "save it without its metadata")

# 1.5 µs each; EXIF has some dozen.
TIFF_TAGS = Bound("TIFF", "tags", 4096, _AGAIN)
# 4 µs each in Pillow, 20 in tifffile. A strip for every row of 50 megapixels makes 7,000, tiles of 64 pixels 12,000.
TIFF_STRIPS = Bound("TIFF", "strips or tiles", 2**14, "save it in larger ones", per_megapixel=500)
TIFF_STRIPS_APART = Bound("TIFF of this layout", "strips or tiles", 2**13, "save it in larger ones", per_megapixel=250)
# 1 to 2 ns each. What is not compressed is bounded by the file.
TIFF_UNPACKED = Bound(
    "compressed TIFF", "bytes once unpacked", 2**26, "save it with 8 bits a sample or as it is", per_megapixel=8 * 10**6
)
# 5 ns each where they repeat.
TIFF_UNPACKED_LZMA = Bound(
    "TIFF compressed by LZMA", "bytes once unpacked", 2**25, "compress it by Deflate", per_megapixel=4 * 10**6
)
# So many times the file's own bytes may be unpacked as well, but by LZMA: data that do not repeat take it 15 ns a byte.
TIFF_TIMES_UNPACKED = 4
# Only a few writers let equal strips share their bytes. libtiff turns the bits of each round where it has to, at 1 ns a
# byte; so many times the file may be read.
TIFF_TIMES_READ = 4
# 2 µs each, and some 100 for those that are read.
TIFF_PAGES = Bound("TIFF", "pages", 1024, "send the first ones alone")

# 0.5 µs each, in Python.
BMP_RUNS = Bound("BMP", "run lengths", 2**19, "save it without them, or as PNG", per_megapixel=5_000)
# Of OS/2's kind, which Pillow reads in Python at 1 µs a byte.
BMP_OS2_RUNS = Bound("BMP of OS/2's kind", "bytes of run lengths", 2**18, "save it without them, or as PNG")
