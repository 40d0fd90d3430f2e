"""Nearest pictures by their plain pixels: what neighbours in feature space are to be compared with.

The lecture's figure: a picture, its nearest in feature space, and below these its nearest in pixel space.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from convlens import image
from convlens.errors import RequestError
from convlens.gallery import Gallery
from convlens.types import Bytes8, ModelSpec
from convlens.utils.concurrency import cores, ordered_map
from convlens.visualization.layout import add_margin, hstack, text_image, vstack


@dataclass(frozen=True)
class PixelNeighbour:
    """``row`` in the gallery; ``distance`` is the Euclidean one between uint8 values, each side so many pixels."""

    row: int
    distance: float


def views_of_files(gallery: Gallery, folder: Path, spec: ModelSpec) -> Iterator[Bytes8]:
    """What the network saw of each of the gallery's pictures, in its order, read once more from their folder.

    RequestError for a picture that is not there or can no longer be read.
    """

    def read(id: str) -> Bytes8:
        path = folder / id
        if not path.is_file():
            raise RequestError(f"{path} is not there, but the gallery names it; give the folder it was built from")
        return image.view(image.read(path), spec)[0]

    with contextlib.closing(ordered_map(read, (e.id for e in gallery.entries), workers=cores(), ahead=16)) as views:
        yield from views


def views_of_thumbnails(gallery: Gallery) -> Iterator[Bytes8]:
    """The gallery's own small pictures, in its order; RequestError where it keeps none, or not of all."""
    for entry in gallery.entries:
        if not entry.thumbnail:
            raise RequestError(
                f"the gallery keeps no thumbnail of {entry.id}; name the folder of its pictures by --pictures"
            )
        yield _opened(entry.thumbnail)


def thumbnail_view(picture: Image.Image, side: int) -> Bytes8:
    """The picture as a thumbnail of the gallery would show it."""
    return _opened(image.thumbnail(picture, side=side))


def nearest_by_pixels(
    queries: Sequence[Bytes8], views: Iterable[Bytes8], *, k: int, left_out: Sequence[frozenset[int]]
) -> list[list[PixelNeighbour]]:
    """For each query its ``k`` nearest views by L2 over all values, nearest first; equals in the gallery's order.

    Views are taken one by one and not kept. ``left_out`` holds for each query the rows that do not count.
    """
    squared_NQ = np.array([[_squared(query, view) for query in queries] for view in views], np.float64)
    found = []
    for q, out in enumerate(left_out):
        order = [int(row) for row in np.argsort(squared_NQ[:, q], kind="stable") if int(row) not in out][:k]
        found.append([PixelNeighbour(row, float(np.sqrt(squared_NQ[row, q]))) for row in order])
    return found


def _squared(one: Bytes8, other: Bytes8) -> int:
    difference = one.astype(np.int32) - other
    return int(np.einsum("hwc,hwc->", difference, difference, dtype=np.int64))


def _opened(data: bytes) -> Bytes8:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


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
            hstack([_words("features"), *(_tile(near) for near in one.by_features)], gap=8),
            hstack([_words("pixels"), *(_tile(near) for near in one.by_pixels)], gap=8),
        ]
        view = Image.fromarray(one.view_HWC).resize((2 * TILE, 2 * TILE), Image.Resampling.LANCZOS)
        query = vstack([np.asarray(view), text_image(one.name, size=_SMALL, width=2 * TILE)], gap=4)
        blocks.append(hstack([query, vstack(rows, gap=8)], gap=16))
    body = vstack(blocks, gap=24)
    return add_margin(vstack([body, text_image(caption, size=_SIZE, width=body.shape[1])], gap=16), margin=16)


def _words(text: str) -> Bytes8:
    return text_image(text, size=_SIZE, width=72)


def _tile(near: Near) -> Bytes8:
    if near.thumbnail:
        with Image.open(io.BytesIO(near.thumbnail)) as picture:
            drawn = np.asarray(picture.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS))
    else:
        drawn = np.full((TILE, TILE, 3), 235, np.uint8)
    return vstack([drawn, text_image(f"{_said(near.distance)} {near.label}", size=_SMALL, width=TILE)], gap=2)


def _said(distance: float) -> str:
    return f"{distance:.0f}" if distance >= 1000 else f"{distance:.4g}"
