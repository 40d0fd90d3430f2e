"""TIFFs that Pillow cannot read, by tifffile and imagecodecs: floats in colour or with alpha, planes stored apart.

Both come with the extra ``convlens[tiff]``; without them such a file is an ImageError that names it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convlens.errors import ImageError, ImageTooLargeError
from convlens.image.modes import on_white, row_bands
from convlens.image.tiff import TiffPixels
from convlens.image.tiff_layout import TiffLayout
from convlens.types import Bytes8, no_op

_LARGEST_STRIP = 64 * 2**20
_READ_AT_ONCE = 2**20  # bytes; tifffile's own choice is 256 MiB
_PREMULTIPLIED, _STRAIGHT = 1, 2  # kinds of extra sample that are alpha (TIFF 6.0, ExtraSamples)


def decode(data: bytes, tiff: TiffPixels, *, on_block: Callable[[], None] = no_op) -> Image.Image:
    """The image as RGB on white, not yet turned upright; whole numbers are scaled by their range, floats are 0..1.

    Calls ``on_block`` after each strip or tile. Raises ImageError for a layout of another kind, for strips that would
    need much more memory than the image, for floats out of range, and where the extra is not installed.
    """
    layout = tiff.layout
    if not layout.samples_are_known:
        raise ImageError(f"a TIFF of {layout}, which is not read; save it as RGB with 8 bits a sample, or as PNG")
    if layout.colours == 1 and layout.samples > 2:
        raise ImageError(
            f"a TIFF of {layout.samples} channels that are no colours; a model of as many reads it, for another "
            "save three of them as RGB"
        )
    if layout.compressed and tiff.unpacked_bytes > _LARGEST_STRIP:
        raise ImageTooLargeError(
            f"a TIFF with strips or tiles of {tiff.unpacked_bytes >> 20} MiB once unpacked; at most "
            f"{_LARGEST_STRIP >> 20} MiB are allowed: save it in smaller ones"
        )
    tiff.check_inside(data)
    levels_HWC = _levels(data, tiff, on_block)
    width, height = tiff.size
    rgb = Image.new("RGB", (width, height))
    for top, bottom in row_bands(tiff.size):
        rgb.paste(_to_rgb(levels_HWC[top:bottom], layout), (0, top))
    return rgb


def _levels(data: bytes, tiff: TiffPixels, on_block: Callable[[], None]) -> Bytes8:
    """The samples that count, colour and alpha, as 0..255: each strip or tile as soon as it is unpacked."""
    kept = tiff.layout.colours + (_alpha(tiff.layout) is not None)
    width, height = tiff.size
    levels_HWC = np.zeros((height, width, kept), np.uint8)
    low, high = np.inf, -np.inf
    for values_HWC, (plane, top, left) in _segments(data, tiff):
        on_block()
        part_HWC = levels_HWC[top:, left:, plane:][: values_HWC.shape[0], : values_HWC.shape[1], : values_HWC.shape[2]]
        values_HWC = values_HWC[: part_HWC.shape[0], : part_HWC.shape[1], : part_HWC.shape[2]]
        if part_HWC.size:
            # numpy's own, which pass NaN on.
            low, high = np.minimum(low, values_HWC.min()), np.maximum(high, values_HWC.max())
            part_HWC[...] = _scaled(values_HWC)
    if tiff.layout.is_float and not (low >= 0 and high <= 1):
        raise ImageError(
            f"an image of floats from {low:g} to {high:g}; only 0..1 has a known brightness: scale it to that"
        )
    return levels_HWC


def _scaled(values: NDArray[Any]) -> Bytes8:
    if values.dtype == np.uint8:
        levels: Bytes8 = values
    elif values.dtype == np.uint16:  # v / 257, rounded
        levels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    else:  # what lies outside 0..1 is refused in the end; here it must only not warn
        levels = np.rint(np.nan_to_num(values.clip(0, 1)).astype(np.float32) * 255).astype(np.uint8)
    return levels


def _segments(data: bytes, tiff: TiffPixels) -> Iterator[tuple[NDArray[Any], tuple[int, int, int]]]:
    """Bands of each unpacked strip or tile as (H, W, C), with its plane, first row and first column."""
    try:
        import tifffile
    except ImportError as error:
        raise _needs_extra(tiff.layout) from error
    with tifffile.TiffFile(io.BytesIO(tiff.alone(data))) as file:
        if not file.pages:
            raise ImageError("a damaged TIFF (it has no image); send the whole file")
        page = file.pages.first
        try:
            for values, (plane, _, top, left, _), _ in page.segments(maxworkers=1, buffersize=_READ_AT_ONCE):
                if values is None:
                    raise ImageError("a damaged TIFF (a part of its pixels is empty); send the whole file")
                for first, end in row_bands((values.shape[2], values.shape[1])):
                    yield values[0, first:end], (plane, top + first, left)
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise _needs_extra(tiff.layout) from error
            raise


def _to_rgb(levels_HWC: Bytes8, layout: TiffLayout) -> Image.Image:
    colours_HWC, alpha_HWC = levels_HWC[..., : layout.colours], levels_HWC[..., layout.colours :]
    if layout.is_cmyk:
        colours_HWC = np.asarray(Image.fromarray(np.ascontiguousarray(colours_HWC), "CMYK").convert("RGB"))
    if layout.white_is_zero:
        colours_HWC = 255 - colours_HWC
    return on_white(np.concatenate([colours_HWC, alpha_HWC], -1), premultiplied=_alpha(layout) == _PREMULTIPLIED)


def _alpha(layout: TiffLayout) -> int | None:
    """The kind of the first sample after the colours, where that is alpha."""
    kind = (layout.extras or (0,))[0]
    return kind if len(layout.bits) > layout.colours and kind in (_PREMULTIPLIED, _STRAIGHT) else None


def _needs_extra(layout: TiffLayout) -> ImageError:
    return ImageError(
        f"a TIFF of {layout}, which needs tifffile and imagecodecs: pip install 'convlens[tiff]', or save it with 8 or "
        "16 bits a sample side by side, or as PNG"
    )
