"""Bytes to an upright RGB image, or an ImageError that says what they are instead; and images to bytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from convlens.errors import ConvLensError, ImageError, ImageTooLargeError
from convlens.image import bmp, libtiff, tiff_samples
from convlens.image.bounds import BMP_OS2_RUNS
from convlens.image.formats import Edges, Format, Size, format_of, webp_size
from convlens.image.gif import gif_frame
from convlens.image.jpeg import jpeg_of_pixels
from convlens.image.modes import to_rgb
from convlens.image.png import check_unpacked, has_all_pixels, is_interlaced, png_of_pixels
from convlens.image.tiff import orientation, read_tiff
from convlens.types import Bytes8, no_op

# Pillow's own warning level for "decompression bombs". Ours must stay below, or Pillow would warn first.
_PILLOW_PIXELS = 1024**3 // 4 // 3


@dataclass(frozen=True)
class Limits:
    """How large an image may be: bytes as sent, pixels as decoded (at most 89 million, from where on Pillow warns)."""

    bytes: int = 20 * 2**20
    pixels: int = 50_000_000

    def __post_init__(self) -> None:
        if self.bytes < 1 or not 1 <= self.pixels <= _PILLOW_PIXELS:
            raise ValueError(f"{self}: bytes must be at least 1 and pixels within 1..{_PILLOW_PIXELS}")


DEFAULT_LIMITS = Limits()
OnBlock = Callable[[], None]


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Do nothing: the resolution is of no use here, and reading it warns where EXIF is damaged."""


# What Pillow, numpy and tifffile have been seen to raise, or may raise by their source, on damaged files.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
_DAMAGE = (
    *DAMAGE,
    Image.DecompressionBombError,
    Warning,  # raised where the process runs with -W error
)

_AS_IT_IS = 1
# By EXIF orientation; 1 is upright, and what is not listed here is taken for that.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class _Reading:
    """What bounds one reading: the limits, and what is called between two blocks of the file."""

    limits: Limits
    on_block: OnBlock

    def check_pixels(self, size: Size) -> None:
        if size[0] * size[1] > self.limits.pixels:
            raise ImageTooLargeError(
                f"an image of {size[0]} x {size[1]} = {size[0] * size[1]} pixels; at most {self.limits.pixels} are "
                "allowed: send a smaller one"
            )

    def open(self, data: bytes) -> io.BytesIO:
        return _Blocks(data, self.on_block)


class _Blocks(io.BytesIO):
    """A file in memory that calls ``on_block`` whenever some of it is read. Pillow's decoders take 64 kB at a time."""

    def __init__(self, data: bytes, on_block: OnBlock) -> None:
        super().__init__(data)
        self._on_block = on_block

    def read(self, size: int | None = -1) -> bytes:
        self._on_block()
        return super().read(size)


def decode(
    data: bytes | bytearray | memoryview, *, limits: Limits = DEFAULT_LIMITS, on_block: OnBlock = no_op
) -> Image.Image:
    """A JPEG, PNG, WebP, GIF, BMP or TIFF as an RGB image the right way up; of several frames or pages the first.

    Transparent pixels lie on white, and so does what a GIF's first frame leaves of its screen. 16-bit grey is scaled,
    not clipped; floats must be 0..1; whole numbers of 32 bits or with a sign are refused; CMYK JPEGs are taken as Adobe
    writes them, inverted. TIFFs of floats in colour or with alpha, of 16-bit grey with alpha, and of most planes stored
    apart need the extra ``convlens[tiff]``. Colour profiles and other metadata are ignored, and not passed on. Both
    limits, and the bounds on the parts of a file (``image.bounds``), are checked before pixels are decoded.

    Calls ``on_block`` now and then while it reads; a ConvLensError from there ends the reading. Raises
    ImageTooLargeError over a limit or bound, ImageError for anything that is not a whole image.
    """
    if len(data) > limits.bytes:
        raise ImageTooLargeError(f"a body of {len(data)} bytes; at most {limits.bytes} are allowed: send a smaller one")
    data = bytes(data)
    kind = format_of(data)
    try:
        on_block()
        rgb, turn = _READERS[kind](data, _Reading(limits, on_block))  # by now nothing but the result is in memory
    except ConvLensError:
        raise
    except _DAMAGE as error:
        raise ImageError(
            f"a {kind} that is damaged or of a rare kind ({_reason(error)}); send the whole file, or save it as PNG"
        ) from error
    rgb.info = {}
    return rgb.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else rgb


def read(path: str | PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """:func:`decode` of a file; every error names the path, a missing file or a folder is an ImageError too."""
    data = read_bytes(path, limits=limits)
    try:
        return decode(data, limits=limits)
    except ImageError as error:
        raise type(error)(f"{path}: {error.message}") from error


def read_bytes(path: str | PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """An image file's bytes. ImageError, naming the path, where it cannot be read or is over the limit."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(limits.bytes + 1)
        size = Path(path).stat().st_size
    except OSError as error:
        reason = error.strerror or error
        raise ImageError(f"{path}: cannot be read ({reason}); give the path of an image file") from error
    if size > limits.bytes:
        raise ImageTooLargeError(f"{path}: {size} bytes; at most {limits.bytes} are allowed")
    return data


# The classes themselves rather than Image.open: that one warns of large sizes before they can be looked at here, tries
# other formats, and takes some JPEGs for MPO.
def _read_jpeg(data: bytes, reading: _Reading) -> tuple[Image.Image, int]:
    return _by_pillow(_Jpeg, reading.open(jpeg_of_pixels(data)), reading)


def _read_png(data: bytes, reading: _Reading) -> tuple[Image.Image, int]:
    png = png_of_pixels(data)
    rgb, turn = _by_pillow(PngImagePlugin.PngImageFile, reading.open(png), reading, check=lambda _: check_unpacked(png))
    # Pillow leaves pixels 0 that a complete stream lacks. To unpack each stream anew would take half the time again.
    last_row_HWC = np.asarray(rgb.crop((0, rgb.height - 1, rgb.width, rgb.height)))
    may_lack_pixels = is_interlaced(png) or (last_row_HWC == last_row_HWC[:, :1]).all()
    if may_lack_pixels and not has_all_pixels(png):
        raise ImageError("a PNG whose pixel data ends before the image is complete; send the whole file")
    return rgb, turn


def _read_webp(data: bytes, reading: _Reading) -> tuple[Image.Image, int]:
    if (size := webp_size(data)) is not None:
        reading.check_pixels(size)  # Pillow allocates them while it opens the file
    return _by_pillow(WebPImagePlugin.WebPImageFile, reading.open(data), reading)


def _read_gif(data: bytes, reading: _Reading) -> tuple[Image.Image, int]:
    frame = gif_frame(data)
    reading.check_pixels(frame.screen)  # Pillow warns of them while it opens the file
    rgb, turn = _by_pillow(GifImagePlugin.GifImageFile, reading.open(frame.alone), reading)
    _whiten_around(rgb, frame.edges)
    return rgb, turn


def _read_bmp(data: bytes, reading: _Reading) -> tuple[Image.Image, int]:
    header = bmp.read_header(data)
    if header is None:
        return _by_pillow(BmpImagePlugin.BmpImageFile, reading.open(data), reading, check=_check_os2_runs)
    reading.check_pixels(header.size)
    return bmp.decode(data, header, on_block=reading.on_block), _AS_IT_IS


def _check_os2_runs(image: ImageFile.ImageFile) -> None:
    for tile in image.tile:
        if tile.codec_name == "bmp_rle" and image.fp is not None:
            BMP_OS2_RUNS.require(image.fp.seek(0, io.SEEK_END) - tile.offset)


def _read_tiff(data: bytes, reading: _Reading) -> tuple[Image.Image, int]:
    tiff = read_tiff(data)
    reading.check_pixels(tiff.extent)
    tiff.check_parts(data, by_pillow=tiff.layout.pillow_reads)
    tiff.layout.check_brightness()
    if tiff.layout.pillow_reads:
        libtiff.configure()
        return _by_pillow(TiffImagePlugin.TiffImageFile, reading.open(tiff.alone(data)), reading)
    return tiff_samples.decode(data, tiff, on_block=reading.on_block), tiff.orientation


# Each gives the image as RGB, and the EXIF orientation that it is still to be turned by.
_READERS: dict[Format, Callable[[bytes, _Reading], tuple[Image.Image, int]]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WebP": _read_webp,
    "GIF": _read_gif,
    "BMP": _read_bmp,
    "TIFF": _read_tiff,
}


def _by_pillow(
    reader: Callable[[io.BytesIO], ImageFile.ImageFile],
    file: io.BytesIO,
    reading: _Reading,
    *,
    check: Callable[[ImageFile.ImageFile], None] = no_op,
) -> tuple[Image.Image, int]:
    """``check`` is called with the opened image before its pixels are decoded."""
    with reader(file) as image:
        reading.check_pixels(image.size)
        check(image)
        image.load()
        file.close()  # its bytes may be as many as the image's
        turn = orientation(image.info.get("exif") or b"")  # Pillow turns TIFFs by itself and leaves nothing here
        return to_rgb(image), turn


def _whiten_around(rgb: Image.Image, edges: Edges) -> None:
    """White over all that lies outside the edges, which Pillow fills with some colour of the palette."""
    left, top, right, bottom = edges
    width, height = rgb.size
    around = ((0, 0, width, top), (0, bottom, width, height), (0, top, left, bottom), (right, top, width, bottom))
    for box in around:
        if box[0] < box[2] and box[1] < box[3]:
            rgb.paste("white", box)


def _reason(error: BaseException) -> str:
    """One short line, since messages may end up in HTTP headers.

    Pillow calls a file truncated also where it is whole, and its decoder alone has run out of pixels.
    """
    words = " ".join(str(error).split())[:120] or type(error).__name__
    if words.startswith("image file is truncated"):
        return "its pixel data ends before the image is complete"
    return "one of its blocks reaches past the end of the file" if words == "Truncated File Read" else words


def encode_png(image_HWC: Bytes8, *, level: int = 1) -> bytes:
    """uint8 RGB as PNG; ``level`` trades time for size (0 stores, 9 packs tightest)."""
    with io.BytesIO() as file:
        _to_pillow(image_HWC).save(file, "PNG", compress_level=level)
        return file.getvalue()


def encode_jpeg(image_HWC: Bytes8, *, quality: int = 90) -> bytes:
    """uint8 RGB as JPEG, 1..95, with full colour resolution. For looking at only: numbers do not survive it."""
    return _save_jpeg(_to_pillow(image_HWC), quality=quality, subsampling=0)


def thumbnail(image: Image.Image, *, side: int) -> bytes:
    """The centre square of an image as a JPEG of ``side`` x ``side`` pixels."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    square = image.convert("RGB").crop((left, top, left + edge, top + edge))
    return _save_jpeg(square.resize((side, side), Image.Resampling.BICUBIC), quality=85, subsampling=2)


def _to_pillow(image_HWC: Bytes8) -> Image.Image:
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or not image_HWC.size:
        raise ValueError(f"image is {image_HWC.dtype} of shape {image_HWC.shape}; need uint8 (H, W, 3)")
    return Image.fromarray(np.ascontiguousarray(image_HWC))


def _save_jpeg(image: Image.Image, *, quality: int, subsampling: int) -> bytes:
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=quality, subsampling=subsampling)
        return file.getvalue()
