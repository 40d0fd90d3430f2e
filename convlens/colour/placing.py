"""A map on the model's grid back at its place in the picture it was cut from."""

from __future__ import annotations

import numpy as np

from convlens.types import Floats

Box = tuple[float, float, float, float]


def placed(values_CHW: Floats, *, size: tuple[int, int], box: Box) -> Floats:
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
