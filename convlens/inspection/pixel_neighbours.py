"""Nearest images by plain pixels, to compare neighbours in the embedding space with, and the figure that shows both."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convlens import image
from convlens.errors import RequestError
from convlens.gallery import Gallery
from convlens.types import Bytes8, ModelSpec
from convlens.utils.concurrency import cores, ordered_map
from convlens.visualization.layout import add_margin, hstack, text_image, vstack

_TILE = 128  # pixels
_SMALL, _SIZE = 12, 15  # letters


# ---- numbers


@dataclass(frozen=True)
class PixelNeighbour:
    """``row`` in the gallery; ``distance`` is the Euclidean one between all values, 0..255, of two images."""

    row: int
    distance: float


def views_of_files(gallery: Gallery, folder: Path, spec: ModelSpec) -> Iterator[NDArray[Any]]:
    """The network's view of each of the gallery's images, in its order, all channels, read again from their folder.

    RequestError for an image that is missing or can no longer be read.
    """

    def read(id: str) -> NDArray[Any]:
        path = folder / id
        if not path.is_file():
            raise RequestError(f"{path} is not there, but the gallery names it; give the folder it was built from")
        return image.view(image.read_channels(path, spec.channels), spec)[0]

    with contextlib.closing(ordered_map(read, (e.id for e in gallery.entries), workers=cores(), ahead=16)) as views:
        yield from views


def views_of_thumbnails(gallery: Gallery) -> Iterator[Bytes8]:
    """The gallery's thumbnails, in its order; RequestError where one is missing."""
    for entry in gallery.entries:
        if not entry.thumbnail:
            raise RequestError(
                f"the gallery keeps no thumbnail of {entry.id}; name the folder of its pictures by --pictures"
            )
        yield _decode(entry.thumbnail)


def thumbnail_view(picture: Image.Image, side: int) -> Bytes8:
    """The image as a thumbnail of the gallery would show it."""
    return _decode(image.thumbnail(picture, side=side))


def nearest_by_pixels(
    queries: Sequence[NDArray[Any]], views: Iterable[NDArray[Any]], *, k: int, excluded: Sequence[frozenset[int]]
) -> list[list[PixelNeighbour]]:
    """For each query its ``k`` nearest views by L2 over all values, nearest first; equal ones in the gallery's order.

    Views are read one by one and not kept. ``excluded`` holds for each query the rows that do not count.
    """
    squared_NQ = np.array([[_squared_distance(query, view) for query in queries] for view in views], np.float64)
    neighbours = []
    for q, rows in enumerate(excluded):
        order = [int(row) for row in np.argsort(squared_NQ[:, q], kind="stable") if int(row) not in rows][:k]
        neighbours.append([PixelNeighbour(row, float(np.sqrt(squared_NQ[row, q]))) for row in order])
    return neighbours


def _squared_distance(query_HWC: NDArray[Any], view_HWC: NDArray[Any]) -> float:
    if np.float32 in (query_HWC.dtype, view_HWC.dtype):  # deep images, of 0..1
        difference_HWC = _in_levels(query_HWC) - _in_levels(view_HWC)
        return float(np.einsum("hwc,hwc->", difference_HWC, difference_HWC))
    # Whole numbers are exact: uint8 differences would wrap around, and float32 sums round.
    difference = query_HWC.astype(np.int32) - view_HWC
    return float(np.einsum("hwc,hwc->", difference, difference, dtype=np.int64))


def _in_levels(view_HWC: NDArray[Any]) -> NDArray[np.float64]:
    return view_HWC * 255.0 if view_HWC.dtype == np.float32 else np.asarray(view_HWC, np.float64)


def _decode(data: bytes) -> Bytes8:
    with Image.open(io.BytesIO(data)) as thumbnail:
        return np.asarray(thumbnail.convert("RGB"))


# ---- drawing


@dataclass(frozen=True)
class NearImage:
    """One neighbour as it is drawn; ``distance`` is that of the space it was found in."""

    label: str
    distance: float
    thumbnail: bytes


@dataclass(frozen=True)
class Comparison:
    """A query and its nearest images in both spaces."""

    name: str
    view_HWC: Bytes8
    by_features: Sequence[NearImage]
    by_pixels: Sequence[NearImage]


def draw_neighbours(comparisons: Sequence[Comparison], *, caption: str) -> Bytes8:
    """For each query two rows, features above pixels."""
    blocks = []
    for comparison in comparisons:
        rows = [
            hstack([_heading("features"), *(_tile(near) for near in comparison.by_features)], gap=8),
            hstack([_heading("pixels"), *(_tile(near) for near in comparison.by_pixels)], gap=8),
        ]
        view = Image.fromarray(comparison.view_HWC).resize((2 * _TILE, 2 * _TILE), Image.Resampling.LANCZOS)
        query = vstack([np.asarray(view), text_image(comparison.name, size=_SMALL, width=2 * _TILE)], gap=4)
        blocks.append(hstack([query, vstack(rows, gap=8)], gap=16))
    body = vstack(blocks, gap=24)
    return add_margin(vstack([body, text_image(caption, size=_SIZE, width=body.shape[1])], gap=16), margin=16)


def _heading(text: str) -> Bytes8:
    return text_image(text, size=_SIZE, width=72)


def _tile(near: NearImage) -> Bytes8:
    if near.thumbnail:
        with Image.open(io.BytesIO(near.thumbnail)) as thumbnail:
            drawn = np.asarray(thumbnail.convert("RGB").resize((_TILE, _TILE), Image.Resampling.LANCZOS))
    else:
        drawn = np.full((_TILE, _TILE, 3), 235, np.uint8)
    distance = f"{near.distance:.0f}" if near.distance >= 1000 else f"{near.distance:.4g}"
    return vstack([drawn, text_image(f"{distance} {near.label}", size=_SMALL, width=_TILE)], gap=2)
