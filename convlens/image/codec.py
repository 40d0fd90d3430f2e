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

from convlens.errors import ImageError, ImageTooLargeError
from convlens.image import bmp, tiff_samples
from convlens.image.formats import (
    Edges,
    Format,
    Size,
    format_of,
    gif_frame,
    has_all_pixels,
    is_interlaced,
    jpeg_of_pixels,
    png_of_pixels,
    webp_size,
)
from convlens.image.modes import to_rgb
from convlens.image.tiff import orientation, read_tiff
from convlens.types import Bytes8

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


def decode(data: bytes | bytearray | memoryview, *, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """A JPEG, PNG, WebP, GIF, BMP or TIFF as an RGB image the right way up; of several frames or pages the first.

    Transparent pixels lie on white, and so does what a GIF's first frame leaves of its screen. 16-bit grey is scaled,
    not clipped; floats must be 0..1; whole numbers of 32 bits or with a sign are refused; CMYK JPEGs are taken as Adobe
    writes them, inverted. TIFFs of floats in colour or with alpha, of 16-bit grey with alpha, and of most planes stored
    apart need the extra ``convlens[tiff]``. Colour profiles and other metadata are ignored, and not passed on. Both
    limits are checked before pixels are decoded. Raises ImageTooLargeError over a limit, ImageError for anything that
    is not a whole image.
    """
    if len(data) > limits.bytes:
        raise ImageTooLargeError(f"a body of {len(data)} bytes; at most {limits.bytes} are allowed: send a smaller one")
    data = bytes(data)
    kind = format_of(data)
    try:
        rgb, turn = _READERS[kind](data, limits)  # by now nothing but the result is left in memory
    except ImageError:
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
def _read_jpeg(data: bytes, limits: Limits) -> tuple[Image.Image, int]:
    return _by_pillow(_Jpeg, io.BytesIO(jpeg_of_pixels(data)), limits)


def _read_png(data: bytes, limits: Limits) -> tuple[Image.Image, int]:
    rgb, turn = _by_pillow(PngImagePlugin.PngImageFile, io.BytesIO(png_of_pixels(data)), limits)
    # Pillow leaves pixels 0 that a complete stream lacks. To unpack each stream anew would take half the time again.
    last_row_HWC = np.asarray(rgb.crop((0, rgb.height - 1, rgb.width, rgb.height)))
    may_lack_pixels = is_interlaced(data) or (last_row_HWC == last_row_HWC[:, :1]).all()
    if may_lack_pixels and not has_all_pixels(png_of_pixels(data)):
        raise ImageError("a PNG whose pixel data ends before the image is complete; send the whole file")
    return rgb, turn


def _read_webp(data: bytes, limits: Limits) -> tuple[Image.Image, int]:
    _check_pixels(webp_size(data), limits)  # Pillow allocates them while it opens the file
    return _by_pillow(WebPImagePlugin.WebPImageFile, io.BytesIO(data), limits)


def _read_gif(data: bytes, limits: Limits) -> tuple[Image.Image, int]:
    frame = gif_frame(data)
    _check_pixels(frame.screen if frame else None, limits)  # Pillow warns of them while it opens the file
    rgb, turn = _by_pillow(GifImagePlugin.GifImageFile, io.BytesIO(data), limits)
    if frame is not None:
        _whiten_around(rgb, frame.edges)
    return rgb, turn


def _read_bmp(data: bytes, limits: Limits) -> tuple[Image.Image, int]:
    header = bmp.read_header(data)
    if header is None:
        return _by_pillow(BmpImagePlugin.BmpImageFile, io.BytesIO(data), limits)
    _check_pixels(header.size, limits)
    return bmp.decode(data, header), _AS_IT_IS


def _read_tiff(data: bytes, limits: Limits) -> tuple[Image.Image, int]:
    tiff = read_tiff(data)
    _check_pixels(tiff.extent, limits)
    tiff.layout.check_brightness()
    if tiff.layout.pillow_reads:
        return _by_pillow(TiffImagePlugin.TiffImageFile, io.BytesIO(tiff.alone(data)), limits)
    return tiff_samples.decode(data, tiff), tiff.orientation


# Each gives the image as RGB, and the EXIF orientation that it is still to be turned by.
_READERS: dict[Format, Callable[[bytes, Limits], tuple[Image.Image, int]]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WebP": _read_webp,
    "GIF": _read_gif,
    "BMP": _read_bmp,
    "TIFF": _read_tiff,
}


def _by_pillow(
    reader: Callable[[io.BytesIO], ImageFile.ImageFile], file: io.BytesIO, limits: Limits
) -> tuple[Image.Image, int]:
    with reader(file) as image:
        _check_pixels(image.size, limits)
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


def _check_pixels(size: Size | None, limits: Limits) -> None:
    if size is not None and size[0] * size[1] > limits.pixels:
        raise ImageTooLargeError(
            f"an image of {size[0]} x {size[1]} = {size[0] * size[1]} pixels; at most {limits.pixels} are allowed: "
            "send a smaller one"
        )


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
