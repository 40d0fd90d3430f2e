"""Figures put together: images below and beside each other, and the text between them (``text``).

Images are uint8 RGB (H, W, 3); the paper is white.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convlens.types import Bytes8
from convlens.visualization.text import text_image

_FRAME = 150
__all__ = ["add_frame", "add_margin", "enlarge", "hstack", "text_image", "vstack"]


def vstack(images: Sequence[Bytes8], *, gap: int = 0) -> Bytes8:
    """Images one below another, aligned at the left, ``gap`` pixels apart."""
    width = max(image.shape[1] for image in images)
    rows = [np.pad(image, ((0, gap), (0, width - image.shape[1]), (0, 0)), constant_values=255) for image in images]
    return np.concatenate(rows)[: -gap or None]


def hstack(images: Sequence[Bytes8], *, gap: int) -> Bytes8:
    """Images beside each other, aligned at the top, ``gap`` pixels apart."""
    return vstack([image.transpose(1, 0, 2) for image in images], gap=gap).transpose(1, 0, 2)


def add_margin(image_HWC: Bytes8, *, margin: int) -> Bytes8:
    """``margin`` pixels of paper on every side."""
    return np.pad(image_HWC, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)


def add_frame(image_HWC: Bytes8) -> Bytes8:
    """A line of grey, one pixel wide, around the image: it shows where a black or a white one ends."""
    return np.pad(image_HWC, ((1, 1), (1, 1), (0, 0)), constant_values=_FRAME)


def enlarge(image_HWC: Bytes8, factor: int) -> Bytes8:
    """Each pixel as a square of ``factor`` x ``factor``: what is drawn are the values, nothing in between."""
    return image_HWC.repeat(factor, axis=0).repeat(factor, axis=1)
