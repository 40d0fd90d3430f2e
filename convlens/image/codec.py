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
from convlens.image.formats import Format, Size, format_of, gif_size, png_of_pixels, webp_size
from convlens.image.modes import to_rgb
from convlens.image.tiff import orientation, tiff_of_pixels
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


# The classes themselves rather than Image.open: that one warns of large sizes before they can be looked at here, tries
# other formats, and takes some JPEGs for MPO.
_READERS: dict[Format, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}

# What Pillow has been seen to raise, or may raise by its source, on damaged files.
_DAMAGE = (
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
    Image.DecompressionBombError,
    Warning,  # raised where the process runs with -W error
)

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

    Transparent pixels lie on white. 16-bit grey is scaled, not clipped; floats must be 0..1; CMYK JPEGs are taken as
    Adobe writes them, inverted. Colour profiles and other metadata are ignored, and not passed on. Both limits are
    checked before pixels are decoded. Raises ImageTooLargeError over a limit, ImageError for anything that is not a
    whole image.
    """
    if len(data) > limits.bytes:
        raise ImageTooLargeError(f"a body of {len(data)} bytes; at most {limits.bytes} are allowed: send a smaller one")
    data = bytes(data)
    kind = format_of(data)
    try:
        return _decode(data, kind, limits)
    except ImageError:
        raise
    except _DAMAGE as error:
        raise ImageError(
            f"a {kind} that is damaged or of a rare kind ({_reason(error)}); send the whole file, or save it as PNG"
        ) from error


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


def _decode(data: bytes, kind: Format, limits: Limits) -> Image.Image:
    data, size = _without_metadata(data, kind)
    _check_pixels(size, limits)
    with _READERS[kind](io.BytesIO(data)) as image:
        _check_pixels(image.size, limits)
        image.load()
        turn = orientation(image.info.get("exif") or b"")  # Pillow turns TIFFs by itself and leaves nothing here
        rgb = to_rgb(image)
    rgb.info = {}
    return rgb.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else rgb


def _without_metadata(data: bytes, kind: Format) -> tuple[bytes, Size | None]:
    """The bytes for Pillow, and the size that it would allocate or warn of while it opens them, where it would."""
    match kind:
        case "TIFF":
            return tiff_of_pixels(data)
        case "PNG":
            return png_of_pixels(data), None
        case "GIF":
            return data, gif_size(data)
        case "WebP":
            return data, webp_size(data)
        case _:
            return data, None


def _check_pixels(size: Size | None, limits: Limits) -> None:
    if size is not None and size[0] * size[1] > limits.pixels:
        raise ImageTooLargeError(
            f"an image of {size[0]} x {size[1]} = {size[0] * size[1]} pixels; at most {limits.pixels} are allowed: "
            "send a smaller one"
        )


def _reason(error: BaseException) -> str:
    """One short line, since messages may end up in HTTP headers."""
    return " ".join(str(error).split())[:120] or type(error).__name__


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
