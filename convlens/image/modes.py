"""Any Pillow mode to 8-bit RGB, without clipping deep images or turning transparent pixels black."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from convlens.errors import ImageError

_ALPHA_MODES = {"RGBA", "RGBa", "LA", "La", "PA"}
# Tags of TIFF 6.0, and values of theirs.
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 259, 262, 284, 339
_WHITE_IS_ZERO, _SEPARATE, _SIGNED = 0, 2, (2,)


def to_rgb(image: Image.Image) -> Image.Image:
    """The loaded image as RGB; alpha lies on white, 16 bits are scaled by 1/257, floats are taken as 0..1.

    CMYK is converted without its profile, LAB as D50 CIELAB. Raises ImageError for values out of range.
    """
    _refuse_misread(image)
    if image.mode == "F":
        return _from_floats(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_deep_grey(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _refuse_misread(image: Image.Image) -> None:
    """ImageError for two rare TIFFs that Pillow (13.0) opens and gets wrong, as a comparison with tifffile showed."""
    bits = _tiff_tag(image, _BITS_PER_SAMPLE) or ()
    if _tiff_tag(image, _PLANES) == _SEPARATE and 16 in bits and _tiff_tag(image, _COMPRESSION) in (None, 1):
        raise ImageError(
            "a TIFF of uncompressed 16-bit planes stored apart; save it with pixels interleaved, or as PNG"
        )
    if image.mode == "L" and _tiff_tag(image, _SAMPLE_FORMAT) == _SIGNED:
        raise ImageError("a TIFF of signed bytes, whose brightness is not known; save it with unsigned bytes")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow has no direct conversion
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    values_HW = np.asarray(image)
    full = _full_scale(image)
    if image.mode == "I" and (values_HW.min() < 0 or values_HW.max() > full):
        raise ImageError(
            f"an image of whole numbers from {values_HW.min()} to {values_HW.max()}; only 0..{full} has a known "
            "brightness: scale it to 8 or 16 bits and send that"
        )
    grey_HW = _brightness_of_code(image, full)[values_HW]
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey_HW[values_HW == transparent] = 255
    return Image.fromarray(grey_HW).convert("RGB")


def _brightness_of_code(image: Image.Image, full: int) -> NDArray[np.uint8]:
    codes = np.minimum(np.arange(65536), full)
    table = np.rint(codes * (255 / full)).astype(np.uint8)
    return 255 - table if _white_is_zero(image) else table


def _from_floats(image: Image.Image) -> Image.Image:
    values_HW = np.asarray(image)
    low, high = float(values_HW.min()), float(values_HW.max())
    if not (low >= 0 and high <= 1):  # so that NaN is refused as well
        raise ImageError(
            f"an image of floats from {low:g} to {high:g}; only 0..1 has a known brightness: scale it to that"
        )
    grey_HW = np.rint(values_HW * 255).astype(np.uint8)
    return Image.fromarray(255 - grey_HW if _white_is_zero(image) else grey_HW).convert("RGB")


def _full_scale(image: Image.Image) -> int:
    """The code of full brightness; 12-bit TIFFs arrive as 16-bit ones that never exceed 4095."""
    return 4095 if _bits_per_sample(image) == (12,) else 65535


def _bits_per_sample(image: Image.Image) -> tuple[int, ...]:
    bits = _tiff_tag(image, _BITS_PER_SAMPLE) or ()
    return bits if isinstance(bits, tuple) else (bits,)


def _white_is_zero(image: Image.Image) -> bool:
    """Whether a deep TIFF counts from white to black: Pillow turns the 8-bit ones round, but not these."""
    return bool(_tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO)


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    return image.tag_v2.get(tag) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
