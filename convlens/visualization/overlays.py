"""Images made from maps: signed gradients as they are, maps laid over photographs, grids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convlens.types import Bytes8, Floats
from convlens.visualization.colormaps import sequential, vivid_signs
from convlens.visualization.heatmaps import Map, abs_max, divide_by_limit, scale, smoothed

# Gradients have long tails: drawn by their 99.9th percentile, as the plain colour maps are, these images stay faint.
_QUANTILE = 0.99
# Black and white of the dimmed photograph: away from both ends, so that colours stand out on either.
_GREY_LEVELS = (30.0, 205.0)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def gradient_image(values_CHW: Floats, *, limit: float | None = None) -> Bytes8:
    """Signed values of three channels as an image around mid grey: 0 is exactly 128, the limit 1 or 255.

    The usual drawing of guided backprop (Springenberg 2014, arXiv:1412.6806). ``limit`` is by default the 99th
    percentile over all channels together, so that colours keep their proportions.
    """
    if values_CHW.ndim != 3 or values_CHW.shape[0] != 3:
        raise ValueError(f"values have shape {values_CHW.shape}; need (3, H, W)")
    rows = values_CHW.reshape(-1, values_CHW.shape[2])
    limit = gradient_limit(values_CHW) if limit is None else limit
    part_CHW = divide_by_limit(rows, limit).reshape(values_CHW.shape)
    return np.asarray(128 + np.rint(127 * part_CHW)).astype(np.uint8).transpose(1, 2, 0)


def gradient_limit(values_CHW: Floats) -> float:
    """The absolute value that :func:`gradient_image` draws at full strength: the 99th percentile over all channels."""
    return scale(values_CHW.reshape(-1, values_CHW.shape[2]), quantile=_QUANTILE)


def draw_gradient(values_CHW: Floats) -> Bytes8:
    """Signed values as :func:`gradient_image` where there are three channels, else the largest magnitude of a pixel's.

    Only three channels make colours.
    """
    return gradient_image(values_CHW) if len(values_CHW) == 3 else sequential(abs_max(values_CHW))


def overlay(
    image_HWC: Bytes8,
    map_HW: Floats,
    *,
    signed: bool,
    strength: float = 0.75,
    limit: float | None = None,
    smooth: float = 0,
) -> Bytes8:
    """A map laid over its image: dimmed grey where it is 0, colour mixed in as it grows to ``limit``.

    Signed maps: red speaks for, blue against. Others: red to yellow, and negative values count as 0. ``strength`` 0..1
    is the colour's share at the limit, by default the 99th percentile after smoothing. ``smooth`` is the width in
    pixels of a Gaussian blur, which makes sparse gradient maps legible (1 to 3), but is not what the method computed.
    """
    _check_image(image_HWC)
    if map_HW.shape != image_HWC.shape[:2] or not 0 <= strength <= 1:
        raise ValueError(
            f"map of {map_HW.shape} on image of {image_HWC.shape}, strength={strength}; need the same height and "
            "width, and a strength of 0..1"
        )
    smooth_HW = smoothed(map_HW, sigma=smooth)
    smooth_HW = smooth_HW if signed else smooth_HW.clip(0)
    part_HW = divide_by_limit(smooth_HW, overlay_limit(smooth_HW) if limit is None else limit)
    share_HW1 = strength * np.abs(part_HW)[..., None]
    mixed_HWC = (1 - share_HW1) * _dimmed(image_HWC)[..., None] + share_HW1 * _vivid(part_HW, signed)
    return np.asarray(np.rint(mixed_HWC)).astype(np.uint8)


def overlay_limit(map_HW: Floats) -> float:
    """The absolute value that :func:`overlay` draws at full strength: the map's 99th percentile."""
    return scale(map_HW, quantile=_QUANTILE)


def grid(images: Sequence[Bytes8], *, columns: int, gap: int = 2, background: int = 255) -> Bytes8:
    """Images of one size side by side, row after row, ``gap`` pixels apart; the last row may be short."""
    if not images or columns < 1 or gap < 0 or not 0 <= background <= 255:
        raise ValueError(
            f"{len(images)} images, columns={columns}, gap={gap}, background={background}; need at least one image and "
            "column, no negative gap, background 0..255"
        )
    height, width = _common_size(images)
    rows, columns = -(-len(images) // columns), min(columns, len(images))
    sheet_HWC = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), background, np.uint8)
    for n, image_HWC in enumerate(images):
        top, left = n // columns * (height + gap), n % columns * (width + gap)
        sheet_HWC[top : top + height, left : left + width] = image_HWC
    return sheet_HWC


def _common_size(images: Sequence[Bytes8]) -> tuple[int, int]:
    for image_HWC in images:
        _check_image(image_HWC)
    sizes = sorted({image_HWC.shape[:2] for image_HWC in images})
    if len(sizes) > 1:
        raise ValueError(f"images of different sizes (height, width): {sizes}; need one size")
    return sizes[0][0], sizes[0][1]


def _dimmed(image_HWC: Bytes8) -> Map:
    black, white = _GREY_LEVELS
    return np.asarray(black + (white - black) / 255 * (image_HWC @ np.asarray(_LUMA)))


def _vivid(part_HW: Map, signed: bool) -> Bytes8:
    """The map's colours without the pale or dark part of a palette: how much is said by the share alone."""
    if signed:
        return vivid_signs(part_HW)
    return sequential(0.42 + 0.43 * part_HW, limit=1)


def _check_image(image_HWC: Bytes8) -> None:
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or not image_HWC.size:
        raise ValueError(f"image is {image_HWC.dtype} of shape {image_HWC.shape}; need uint8 (H, W, 3)")
