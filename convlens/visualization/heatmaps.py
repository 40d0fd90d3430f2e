"""Values to maps: reduce channels, find the scale to draw by, smooth, resize.

A map on the model's grid back at its place in the picture it was cut from.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.types import Floats

Map = NDArray[np.float64]


def abs_max(values_CHW: Floats) -> Map:
    """Largest absolute value over the channels (Simonyan 2013, arXiv:1312.6034, section 3.1); never negative."""
    return np.asarray(np.abs(_finite(values_CHW, "values", "CHW")).max(axis=0))


def signed_sum(values_CHW: Floats) -> Map:
    """Sum over the channels, so that for and against may cancel."""
    return np.asarray(_finite(values_CHW, "values", "CHW").sum(axis=0))


def scale(map_HW: Floats, *, quantile: float = 0.999) -> float:
    """The absolute value to draw at full strength: a quantile, so that a few outliers do not turn the picture black.

    Where a map is so sparse that the quantile is 0 it is the maximum; of a map that is zero throughout it is 1.
    """
    absolute = np.abs(_finite(map_HW, "map", "HW"))
    return float(np.quantile(absolute, quantile)) or float(absolute.max()) or 1.0


def smoothed(map_HW: Floats, *, sigma: float) -> Map:
    """Gaussian blur by ``sigma`` pixels, out to 3 sigma, the border repeated; 0 leaves the map as it is."""
    values_HW = _finite(map_HW, "map", "HW")
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma={sigma} is not a width in pixels; use 0 or more")
    radius = math.ceil(3 * sigma)
    if radius == 0:
        return values_HW
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    return _convolved(_convolved(values_HW, weights).T, weights).T


def resize_map(map_HW: Floats, height: int, width: int) -> Map:
    """Bilinear, pixel centres aligned, the border repeated (torch's ``align_corners=False``). Does not average: for
    enlarging low-resolution maps such as Grad-CAM's.
    """
    values_HW = _finite(map_HW, "map", "HW")
    if height < 1 or width < 1:
        raise ValueError(f"a map cannot be resized to {height} x {width}")
    return _stretched(_stretched(values_HW, height).T, width).T


def _stretched(values_HW: Map, height: int) -> Map:
    """Bilinear along the first axis."""
    have = values_HW.shape[0]
    at = ((np.arange(height) + 0.5) * have / height - 0.5).clip(0, have - 1)
    low = np.floor(at).astype(int)
    part = (at - low)[:, None]
    return np.asarray(values_HW[low] * (1 - part) + values_HW[np.minimum(low + 1, have - 1)] * part)


def _convolved(values_HW: Map, weights: NDArray[np.float64]) -> Map:
    """Along the first axis."""
    radius, height = len(weights) // 2, values_HW.shape[0]
    padded = np.pad(values_HW, ((radius, radius), (0, 0)), mode="edge")
    total = np.zeros_like(values_HW)
    for n, weight in enumerate(weights):
        total += weight * padded[n : n + height]
    return total


def _finite(values: NDArray[Any], name: str, axes: str) -> NDArray[np.float64]:
    """As float64; ValueError unless it has these axes, none empty, and only finite numbers."""
    if values.ndim != len(axes) or not values.size:
        raise ValueError(f"{name} has shape {values.shape}; need {axes}, none of them 0")
    values64 = np.asarray(values, np.float64)
    if not np.isfinite(values64).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(values64)).sum())} values that are not finite")
    return values64


def as_part(map_HW: Floats, limit: float | None) -> Map:
    """Values as parts of the limit (by default the map's own scale), clipped to -1..1."""
    values_HW = _finite(map_HW, "map", "HW")
    limit = scale(values_HW) if limit is None else limit
    if not 0 < limit < math.inf:
        raise ValueError(f"limit={limit} is no scale; it must be above 0")
    return np.asarray(values_HW.clip(-limit, limit) / limit)  # clipped first: a tiny limit must not overflow


Box = tuple[float, float, float, float]


def place_in_image(values_CHW: Floats, *, size: tuple[int, int], box: Box) -> Floats:
    """The values where they belong in a picture of ``size`` (width, height): (C, height, width), 0 outside the box.

    ``box`` is the left, top, right and bottom of the map in pixels of the picture; fractions are meant. Pixels whose
    centre lies outside are 0. Bilinear where the map is enlarged, with the border repeated; where it is made smaller,
    each pixel averages what it covers (a triangle filter, as Pillow's and torchvision's antialiased resizing).
    """
    left, top, right, bottom = box
    width, height = size
    if values_CHW.ndim != 3 or min(size) < 1 or not (left < right and top < bottom):
        raise ValueError(
            f"values {values_CHW.shape}, size {size}, box {box}; need (C, H, W) and a box that is not empty"
        )
    across = _weights(width, values_CHW.shape[2], left, right).astype(values_CHW.dtype, copy=False)
    down = _weights(height, values_CHW.shape[1], top, bottom).astype(values_CHW.dtype, copy=False)
    # One side at a time: the larger product comes last, and is made once.
    return np.asarray(down @ (values_CHW @ across.T))


def _weights(pixels: int, cells: int, first: float, last: float) -> Floats:
    """(pixels, cells): each pixel's share of each cell along one side; rows sum to 1 in the box and to 0 outside."""
    scale = cells / (last - first)  # cells in a pixel
    centre_P = (np.arange(pixels) + 0.5 - first) * scale
    reach = max(1.0, scale)
    # The border repeated: what lies beyond the first or the last cell's centre is that cell.
    near_P = centre_P.clip(0.5, cells - 0.5)
    weights_PK = (1 - np.abs(near_P[:, None] - (np.arange(cells) + 0.5)) / reach).clip(0)
    weights_PK /= weights_PK.sum(axis=1, keepdims=True)
    return np.asarray(weights_PK * ((centre_P >= 0) & (centre_P <= cells))[:, None])
