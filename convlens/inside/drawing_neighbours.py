"""The lecture's figure: a picture, its nearest in feature space, and below these its nearest in pixel space."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from convlens.figures import framed, lettered, side_by_side, stacked
from convlens.types import Bytes8

TILE, _SMALL, _SIZE = 128, 12, 15


@dataclass(frozen=True)
class Near:
    """One neighbour as it is drawn; ``distance`` of the space it was found in."""

    label: str
    distance: float
    thumbnail: bytes


@dataclass(frozen=True)
class Compared:
    """A query and its nearest in both spaces."""

    name: str
    view_HWC: Bytes8
    by_features: Sequence[Near]
    by_pixels: Sequence[Near]


def neighbours_figure(compared: Sequence[Compared], *, caption: str) -> Bytes8:
    """For each query two rows, features above pixels."""
    blocks = []
    for one in compared:
        rows = [
            side_by_side([_words("features"), *(_tile(near) for near in one.by_features)], gap=8),
            side_by_side([_words("pixels"), *(_tile(near) for near in one.by_pixels)], gap=8),
        ]
        view = Image.fromarray(one.view_HWC).resize((2 * TILE, 2 * TILE), Image.Resampling.LANCZOS)
        query = stacked([np.asarray(view), lettered(one.name, size=_SMALL, width=2 * TILE)], gap=4)
        blocks.append(side_by_side([query, stacked(rows, gap=8)], gap=16))
    body = stacked(blocks, gap=24)
    return framed(stacked([body, lettered(caption, size=_SIZE, width=body.shape[1])], gap=16), margin=16)


def _words(text: str) -> Bytes8:
    return lettered(text, size=_SIZE, width=72)


def _tile(near: Near) -> Bytes8:
    if near.thumbnail:
        with Image.open(io.BytesIO(near.thumbnail)) as picture:
            drawn = np.asarray(picture.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS))
    else:
        drawn = np.full((TILE, TILE, 3), 235, np.uint8)
    return stacked([drawn, lettered(f"{_said(near.distance)} {near.label}", size=_SMALL, width=TILE)], gap=2)


def _said(distance: float) -> str:
    return f"{distance:.0f}" if distance >= 1000 else f"{distance:.4g}"
