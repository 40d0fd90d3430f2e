"""Any Pillow mode to 8-bit RGB, without clipping deep images or turning transparent pixels black.

All but the plainest modes are converted some rows at a time, so that no more than the image and its result lie in
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from convlens.errors import ImageError
from convlens.image.tiff_layout import TiffLayout
from convlens.types import Bytes8

_ALPHA_MODES = {"RGBA", "RGBa", "LA", "La", "PA"}
_PIXELS_OF_BAND = 2**18
# Tags of TIFF 6.0, and values of theirs.
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0


def to_rgb(image: Image.Image) -> Image.Image:
    """The loaded image as RGB, always a new one; alpha lies on white, 16 bits are scaled by 1/257, floats are 0..1.

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
    """ImageError for a TIFF that Pillow opens and gets wrong."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    layout = TiffLayout.of(lambda tag: _tiff_tag(image, tag), little=image.tag_v2.prefix == b"II")
    layout.check_brightness()
    if not layout.pillow_reads:
        raise ImageError(f"a TIFF that Pillow misreads ({layout}); save it with 8 bits a sample, or as PNG")


def row_bands(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The first row of each band of about 260,000 pixels, and the row behind its last, from top to bottom."""
    rows = max(1, _PIXELS_OF_BAND // max(1, size[0]))
    for top in range(0, size[1], rows):
        yield top, min(top + rows, size[1])


def on_white(levels_HWC: Bytes8, *, premultiplied: bool = False) -> Image.Image:
    """An array of grey, grey and alpha, RGB, or RGBA as an RGB image on white."""
    grey = levels_HWC.shape[2] < 3
    if levels_HWC.shape[2] in (2, 4):
        alpha_HW1 = levels_HWC[..., -1:].astype(np.uint16)
        colours_HWC = levels_HWC[..., :-1].astype(np.uint16)
        if premultiplied:
            levels_HWC = np.minimum(255, colours_HWC + (255 - alpha_HW1)).astype(np.uint8)
        else:  # at most 255 * 255, half of 255 added to round
            levels_HWC = ((colours_HWC * alpha_HW1 + 255 * (255 - alpha_HW1) + 127) // 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels_HWC[..., 0] if grey else levels_HWC)).convert("RGB")


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image's bands, each with its first row."""
    for top, bottom in row_bands(image.size):
        yield top, image.crop((0, top, image.width, bottom))


def _on_white(image: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", image.size, "white")
    if image.mode == "RGBA" and "transparency" not in image.info:
        rgb.paste(image, (0, 0), image)
        return rgb
    for top, band in _bands(image):
        # Pillow has no direct conversion from La.
        rgba = (band.convert("LA") if band.mode == "La" else band).convert("RGBA")
        rgb.paste(rgba, (0, top), rgba)
    return rgb


def _from_deep_grey(image: Image.Image) -> Image.Image:
    full = _full_scale(image)
    if image.mode == "I":
        _check_range(image, full)
    brightness = _brightness_of_code(image, full)
    transparent = image.info.get("transparency")
    rgb = Image.new("RGB", image.size)
    for top, band in _bands(image):
        values_HW = np.asarray(band)
        grey_HW = brightness[values_HW]
        if isinstance(transparent, int):
            grey_HW[values_HW == transparent] = 255
        rgb.paste(Image.fromarray(grey_HW).convert("RGB"), (0, top))
    return rgb


def _check_range(image: Image.Image, full: int) -> None:
    low, high = _extremes(image)
    if low < 0 or high > full:
        raise ImageError(
            f"an image of whole numbers from {low:.0f} to {high:.0f}; only 0..{full} has a known "
            "brightness: scale it to 8 or 16 bits and send that"
        )


def _extremes(image: Image.Image) -> tuple[float, float]:
    """The least and the greatest value; NaN for both where there is one."""
    low, high = np.inf, -np.inf
    for _, band in _bands(image):
        values_HW = np.asarray(band)
        low, high = np.minimum(low, values_HW.min()), np.maximum(high, values_HW.max())  # numpy's pass NaN on
    return float(low), float(high)


def _brightness_of_code(image: Image.Image, full: int) -> NDArray[np.uint8]:
    codes = np.minimum(np.arange(65536), full)
    table = np.rint(codes * (255 / full)).astype(np.uint8)
    return 255 - table if _white_is_zero(image) else table


def _from_floats(image: Image.Image) -> Image.Image:
    low, high = _extremes(image)
    if not (low >= 0 and high <= 1):  # so that NaN is refused as well
        raise ImageError(
            f"an image of floats from {low:g} to {high:g}; only 0..1 has a known brightness: scale it to that"
        )
    rgb = Image.new("RGB", image.size)
    for top, band in _bands(image):
        grey_HW = np.rint(np.asarray(band) * np.float32(255)).astype(np.uint8)
        rgb.paste(Image.fromarray(255 - grey_HW if _white_is_zero(image) else grey_HW).convert("RGB"), (0, top))
    return rgb


def _full_scale(image: Image.Image) -> int:
    """The code of full brightness; 12-bit TIFFs arrive as 16-bit ones that never exceed 4095."""
    return 4095 if _tiff_tag(image, _BITS_PER_SAMPLE) == (12,) else 65535


def _white_is_zero(image: Image.Image) -> bool:
    """Whether a deep TIFF counts from white to black: Pillow turns the 8-bit ones round, but not these."""
    return _tiff_tag(image, _PHOTOMETRIC) == (_WHITE_IS_ZERO,)


def _tiff_tag(image: Image.Image, tag: int) -> tuple[Any, ...]:
    """The tag's values; () where there is none."""
    value = image.tag_v2.get(tag) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    return value if isinstance(value, tuple) else () if value is None else (value,)
