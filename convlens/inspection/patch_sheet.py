"""The patches of a channel and what excites the neuron of each, cut out and drawn side by side."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convlens.inspection.receptive_field import Box
from convlens.types import Bytes8, Floats
from convlens.visualization import draw_gradient
from convlens.visualization.layout import enlarge, hstack, text_image, vstack

_TILE, _LARGEST_TILE, _LETTERS, _THREE_LINES = 128, 160, 11, 50  # pixels

T = TypeVar("T", bound=np.generic)


def visible_box(box: Box, image_size: tuple[int, int]) -> Box:
    """The part of a box that is worth drawing: where it is longer than the image, the image's side."""
    (top, left, bottom, right), (height, width) = box, image_size
    if bottom - top > height:
        top, bottom = 0, height
    if right - left > width:
        left, right = 0, width
    return top, left, bottom, right


def crop(view_HWC: Bytes8, box: Box, *, fill: Sequence[int]) -> Bytes8:
    """The box cut from the image, ``fill`` beyond its border."""
    top, left, bottom, right = box
    out_HWC = np.empty((bottom - top, right - left, 3), np.uint8)
    out_HWC[:] = np.asarray(fill, np.uint8)
    return _paste_visible(view_HWC, box, out_HWC)


def crop_gradient(grad_CHW: Floats, box: Box) -> Floats:
    """The box cut from a gradient (C, H, W), 0 beyond the border."""
    top, left, bottom, right = box
    out_HWC = np.zeros((bottom - top, right - left, len(grad_CHW)), grad_CHW.dtype)
    return _paste_visible(grad_CHW.transpose(1, 2, 0), box, out_HWC).transpose(2, 0, 1)


def _paste_visible(values_HWC: NDArray[T], box: Box, out_HWC: NDArray[T]) -> NDArray[T]:
    # The crop is padded, never shifted: a shifted one would show pixels that the neuron does not see.
    top, left, bottom, right = box
    height, width = values_HWC.shape[:2]
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    out_HWC[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = values_HWC[rows, columns]
    return out_HWC


def draw_channel_sheet(crops: Sequence[Bytes8], gradients: Sequence[Floats], *, captions: Sequence[str] = ()) -> Bytes8:
    """Crops in a row, strongest first; below each its gradient, if given, drawn to a scale of its own, and its caption.

    A caption that takes more than three lines loses letters of its middle.
    """
    longest = max(max(image_HWC.shape[:2]) for image_HWC in crops)
    side = longest * max(1, _LARGEST_TILE // longest) if longest <= _LARGEST_TILE else _TILE
    rows = [hstack([_tile(each, side) for each in crops], gap=4)]
    if gradients:
        rows.append(hstack([_tile(draw_gradient(each), side) for each in gradients], gap=4))
    if captions:
        rows.append(hstack([_caption(each, side) for each in captions], gap=4))
    return vstack(rows, gap=4)


def _tile(image_HWC: Bytes8, side: int) -> Bytes8:
    """A square of ``side`` pixels: small crops with whole squares for pixels, large ones reduced."""
    longest = max(image_HWC.shape[:2])
    if longest <= side:
        image_HWC = enlarge(image_HWC, side // longest)
    else:
        height, width = (max(1, round(length * side / longest)) for length in image_HWC.shape[:2])
        image_HWC = np.asarray(Image.fromarray(image_HWC).resize((width, height), Image.Resampling.LANCZOS))
    height, width = image_HWC.shape[:2]
    return np.pad(image_HWC, ((0, side - height), (0, side - width), (0, 0)), constant_values=255)


def _caption(text: str, width: int) -> Bytes8:
    """The text in at most three lines; of a longer one the middle gives way: the end tells files apart."""
    # Three lines hold fewer letters than they are pixels wide.
    kept = min(len(text), width)
    fits = bisect_right(range(1, kept + 1), False, key=lambda count: not _fits(_shortened(text, count), width))
    while fits > 1 and not _fits(_shortened(text, fits), width):  # where a line is broken early, a letter less may do
        fits -= 1
    return text_image(_shortened(text, max(1, fits)), size=_LETTERS, width=width)[:_THREE_LINES]


def _fits(text: str, width: int) -> bool:
    return len(text_image(text, size=_LETTERS, width=width)) <= _THREE_LINES


def _shortened(text: str, kept: int) -> str:
    """That many of its letters, half of them from the end."""
    return text if kept >= len(text) else f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
