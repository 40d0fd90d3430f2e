"""A channel's patches as the lecture shows them: the crops, and below each what guided backprop makes of its neuron."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from convlens.colour import gradient_picture
from convlens.figures import enlarged, side_by_side, stacked
from convlens.inside.fields import Box
from convlens.types import Bytes8, Floats

TILE = 96


def crop(view_HWC: Bytes8, box: Box, *, fill: Sequence[int]) -> Bytes8:
    """The box cut from the picture, ``fill`` where it lies beyond the border: the crop is padded and never shifted."""
    top, left, bottom, right = box
    height, width = view_HWC.shape[:2]
    out = np.empty((bottom - top, right - left, 3), np.uint8)
    out[:] = np.asarray(fill, np.uint8)
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    out[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = view_HWC[rows, columns]
    return out


def shown(box: Box, picture: tuple[int, int]) -> Box:
    """The part of a box that is worth showing: along a side where it is longer than the picture, the picture's."""
    (top, left, bottom, right), (height, width) = box, picture
    if bottom - top > height:
        top, bottom = 0, height
    if right - left > width:
        left, right = 0, width
    return top, left, bottom, right


def cut_gradient(grad_CHW: Floats, box: Box) -> Floats:
    """The box cut from a gradient, 0 beyond the border."""
    top, left, bottom, right = box
    _, height, width = grad_CHW.shape
    out = np.zeros((len(grad_CHW), bottom - top, right - left), grad_CHW.dtype)
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    out[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = grad_CHW[:, rows, columns]
    return out


def channel_sheet(crops: Sequence[Bytes8], gradients: Sequence[Floats]) -> Bytes8:
    """Crops in a row, strongest first, their gradients below, each drawn to its own scale; no gradients, one row."""
    rows = [side_by_side([_tile(each) for each in crops], gap=4)]
    if gradients:
        rows.append(side_by_side([_tile(gradient_picture(each)) for each in gradients], gap=4))
    return stacked(rows, gap=4)


def _tile(picture_HWC: Bytes8) -> Bytes8:
    """A square: small crops with whole squares for pixels, large ones made smaller."""
    longest = max(picture_HWC.shape[:2])
    if longest <= TILE:
        picture_HWC = enlarged(picture_HWC, TILE // longest)
    else:
        size = tuple(max(1, round(side * TILE / longest)) for side in picture_HWC.shape[1::-1])
        picture_HWC = np.asarray(Image.fromarray(picture_HWC).resize((size[0], size[1]), Image.Resampling.LANCZOS))
    height, width = picture_HWC.shape[:2]
    return np.pad(picture_HWC, ((0, TILE - height), (0, TILE - width), (0, 0)), constant_values=255)
