"""Nearest pictures by their plain pixels: what neighbours in feature space are to be compared with."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from convlens import image
from convlens.bulk.ahead import cores, in_order
from convlens.errors import RequestError
from convlens.gallery import Gallery
from convlens.types import Bytes8, ModelSpec


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

    with contextlib.closing(in_order(read, (e.id for e in gallery.entries), workers=cores(), ahead=16)) as views:
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
