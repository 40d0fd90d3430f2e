"""Values to maps: reduce channels, scale, smooth, resize, and put a map back where it was cut from.

Arithmetic is in float64. ValueError for arrays of other axes than the names say, and for values that are not finite.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.types import Box, Floats

Map = NDArray[np.float64]
_SPLINE_REACH = 2  # cells to each side, which a cubic B-spline covers


def abs_max(values_CHW: Floats) -> Map:
    """Largest absolute value over the channels (Simonyan 2013, arXiv:1312.6034, section 3.1); never negative."""
    return np.asarray(np.abs(_finite(values_CHW, "values", "CHW")).max(axis=0))


def signed_sum(values_CHW: Floats) -> Map:
    """Sum over the channels, so that evidence for and against may cancel."""
    return np.asarray(_finite(values_CHW, "values", "CHW").sum(axis=0))


def scale(map_HW: Floats, *, quantile: float = 0.999) -> float:
    """The absolute value to draw at full strength: a quantile, so that a few outliers do not turn the image black.

    Where a map is so sparse that the quantile is 0 it is the maximum; of a map that is zero throughout it is 1.
    """
    absolute = np.abs(_finite(map_HW, "map", "HW"))
    return float(np.quantile(absolute, quantile)) or float(absolute.max()) or 1.0


def divide_by_limit(map_HW: Floats, limit: float | None) -> Map:
    """The map in units of ``limit`` (by default its own :func:`scale`), clipped to -1..1."""
    values_HW = _finite(map_HW, "map", "HW")
    limit = scale(values_HW) if limit is None else limit
    if not 0 < limit < math.inf:
        raise ValueError(f"limit={limit} is no scale; it must be above 0")
    # Clipped before the division: a tiny limit would make large values overflow.
    return np.asarray(values_HW.clip(-limit, limit) / limit)


def smoothed(map_HW: Floats, *, sigma: float) -> Map:
    """Gaussian blur by ``sigma`` pixels, out to 3 sigma, the border repeated; 0 leaves the map as it is."""
    values_HW = _finite(map_HW, "map", "HW")
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma={sigma} is not a width in pixels; use 0 or more")
    radius = math.ceil(3 * sigma)
    if radius == 0:
        return values_HW
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    # A Gaussian is separable: one pass down the columns, one along the rows.
    return _convolve_columns(_convolve_columns(values_HW, kernel).T, kernel).T


def resize_map(map_HW: Floats, height: int, width: int) -> Map:
    """Bilinear, pixel centres aligned, the border repeated: torch's ``interpolate`` with ``align_corners=False``.

    Nothing is averaged, so it is for enlarging maps of low resolution, such as Grad-CAM's.
    """
    values_HW = _resizable(map_HW, height, width)
    return _resize_columns(_resize_columns(values_HW, height).T, width).T


def resize_smoothly(map_HW: Floats, height: int, width: int) -> Map:
    """Enlarged for the eye: the cubic B-spline over the cells, pixel centres aligned, the border repeated.

    Each pixel is a mean of cells near it, weighted nearly as by a Gaussian: no edges or crosses, as bilinear stretching
    has, and no value beyond the cells', so no sign that the map does not have. A single cell keeps 4/9 of its height.
    """
    values_HW = _resizable(map_HW, height, width)
    rows, columns = values_HW.shape
    down_PR, across_QC = _spline_weights(height, rows), _spline_weights(width, columns)
    return np.asarray(down_PR @ np.pad(values_HW, _SPLINE_REACH, mode="edge") @ across_QC.T)


def place_in_image(values_CHW: Floats, *, size: tuple[int, int], box: Box) -> Floats:
    """The values at their place in an image of ``size`` (width, height): (C, height, width), 0 outside the box.

    ``box`` is where the values belong. Pixels whose centre lies outside are 0. Where the map is enlarged it is
    bilinear, with the border repeated; where it is made smaller, each pixel averages what it covers (a triangle filter,
    as Pillow's and torchvision's antialiased resizing).
    """
    left, top, right, bottom = box
    width, height = size
    if values_CHW.ndim != 3 or min(size) < 1 or not (left < right and top < bottom):
        raise ValueError(
            f"values {values_CHW.shape}, size {size}, box {box}; need (C, H, W) and a box that is not empty"
        )
    across = _triangle_weights(width, values_CHW.shape[2], left, right).astype(values_CHW.dtype, copy=False)
    down = _triangle_weights(height, values_CHW.shape[1], top, bottom).astype(values_CHW.dtype, copy=False)
    # One side at a time: the larger product comes last, and is made once.
    return np.asarray(down @ (values_CHW @ across.T))


def _convolve_columns(values_HW: Map, kernel: NDArray[np.float64]) -> Map:
    radius, height = len(kernel) // 2, values_HW.shape[0]
    padded = np.pad(values_HW, ((radius, radius), (0, 0)), mode="edge")
    total = np.zeros_like(values_HW)
    for n, weight in enumerate(kernel):
        total += weight * padded[n : n + height]
    return total


def _resize_columns(values_HW: Map, height: int) -> Map:
    rows = values_HW.shape[0]
    # Centres of the new pixels in units of the old ones, whose own centres lie at 0, 1, 2, ...
    centre = ((np.arange(height) + 0.5) * rows / height - 0.5).clip(0, rows - 1)
    above = np.floor(centre).astype(int)
    share = (centre - above)[:, None]
    return np.asarray(values_HW[above] * (1 - share) + values_HW[np.minimum(above + 1, rows - 1)] * share)


def _spline_weights(pixels: int, cells: int) -> Map:
    """(pixels, cells + 4): each pixel's share of each cell along one side, two repeated cells at either end."""
    centre_P = (np.arange(pixels) + 0.5) * cells / pixels - 0.5
    distance_PK = np.abs(centre_P[:, None] - np.arange(-_SPLINE_REACH, cells + _SPLINE_REACH))
    near_PK, far_PK = (1 - distance_PK).clip(0), (2 - distance_PK).clip(0)
    # The cubic B-spline in truncated powers: 2/3 - d² + d³/2 up to a distance of 1, then (2 - d)³/6.
    return np.asarray((far_PK**3 - 4 * near_PK**3) / 6)


def _triangle_weights(pixels: int, cells: int, first: float, last: float) -> Floats:
    """(pixels, cells): each pixel's share of each cell along one side; rows sum to 1 in the box and to 0 outside."""
    cells_per_pixel = cells / (last - first)
    centre_P = (np.arange(pixels) + 0.5 - first) * cells_per_pixel
    reach = max(1.0, cells_per_pixel)
    # The border repeated: beyond the centre of the first or the last cell, the value is that cell's.
    near_P = centre_P.clip(0.5, cells - 0.5)
    weights_PK = (1 - np.abs(near_P[:, None] - (np.arange(cells) + 0.5)) / reach).clip(0)
    weights_PK /= weights_PK.sum(axis=1, keepdims=True)
    return np.asarray(weights_PK * ((centre_P >= 0) & (centre_P <= cells))[:, None])


def _resizable(map_HW: Floats, height: int, width: int) -> Map:
    if height < 1 or width < 1:
        raise ValueError(f"a map cannot be resized to {height} x {width}")
    return _finite(map_HW, "map", "HW")


def _finite(values: NDArray[Any], name: str, axes: str) -> NDArray[np.float64]:
    """As float64; ValueError unless it has these axes, none empty, and only finite numbers."""
    if values.ndim != len(axes) or not values.size:
        raise ValueError(f"{name} has shape {values.shape}; need {axes}, none of them 0")
    values64 = np.asarray(values, np.float64)
    if not np.isfinite(values64).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(values64)).sum())} values that are not finite")
    return values64
