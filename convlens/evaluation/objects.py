"""Objects marked in an image, and which pixels of the model's input show them.

Coordinates are in pixels of the upright original image, as ``convlens.image.read`` returns it after EXIF rotation: the
left edge of the first pixel is 0, its centre 0.5, the right edge of the last one the image's width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.errors import RequestError
from convlens.types import Box

Mask = NDArray[np.bool_]
Size = tuple[int, int]
"""Width and height of an image."""


@dataclass(frozen=True)
class ObjectBox:
    """A rectangle. ``source`` says where it stands, for messages; ``size`` is the image's, None where it is not told.

    ``label`` is empty where the object has none.
    """

    box: Box
    label: str = ""
    size: Size | None = dataclasses.field(default=None, compare=False)
    source: str = dataclasses.field(default="", compare=False)

    @property
    def extent(self) -> Box:
        return self.box

    def covers(self, x_W: NDArray[Any], y_H: NDArray[Any]) -> Mask:
        """(H, W): whether each point of the grid lies inside; left and top edge count, right and bottom do not."""
        left, top, right, bottom = self.box
        return np.asarray(((y_H >= top) & (y_H < bottom))[:, None] & ((x_W >= left) & (x_W < right)))


@dataclass(frozen=True)
class ObjectPolygons:
    """One object in one or more parts, each a closed line of (x, y) corners; by the even-odd rule within a part."""

    parts: tuple[tuple[tuple[float, float], ...], ...]
    label: str = ""
    size: Size | None = dataclasses.field(default=None, compare=False)
    source: str = dataclasses.field(default="", compare=False)

    @property
    def extent(self) -> Box:
        corners = np.concatenate([np.asarray(part) for part in self.parts])
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        return float(left), float(top), float(right), float(bottom)

    def covers(self, x_W: NDArray[Any], y_H: NDArray[Any]) -> Mask:
        """(H, W): whether each point of the grid lies inside one of the parts."""
        covered_HW = np.zeros((len(y_H), len(x_W)), bool)
        for part in self.parts:
            covered_HW |= _inside(part, x_W, y_H)
        return covered_HW


@dataclass(frozen=True)
class ObjectMask:
    """Pixels of an image of ``size``, as COCO writes them: run lengths down the columns, the first outside.

    Runs rather than pixels, since thousands of masks are held at a time.
    """

    runs: tuple[int, ...]
    size: Size
    label: str = ""
    source: str = dataclasses.field(default="", compare=False)

    @property
    def extent(self) -> Box:
        return 0.0, 0.0, float(self.size[0]), float(self.size[1])

    def covers(self, x_W: NDArray[Any], y_H: NDArray[Any]) -> Mask:
        """(H, W): whether each point of the grid lies in a pixel of the object; the points lie in the image."""
        columns, rows = np.floor(x_W).astype(np.int64), np.floor(y_H).astype(np.int64)
        at_HW = columns * self.size[1] + rows[:, None]
        return np.asarray(np.searchsorted(np.cumsum(self.runs), at_HW, side="right") % 2 == 1)


MarkedObject = ObjectBox | ObjectPolygons | ObjectMask


def mask_runs(mask_HW: NDArray[Any]) -> tuple[int, ...]:
    """The runs of an ObjectMask, of any array whose nonzero values are the object."""
    flat = np.concatenate([[False], np.asarray(mask_HW, bool).T.reshape(-1)])
    starts = np.flatnonzero(np.diff(flat))
    return tuple(np.diff(np.concatenate([[0], starts, [flat.size - 1]])).tolist())


def objects_for(objects: Sequence[MarkedObject], label: str) -> tuple[MarkedObject, ...]:
    """The objects of that label where there are any, else all.

    Labels are compared without case, with underscores as spaces; of a comma-separated list of names one is enough. All
    count where none has the label, since few annotations name objects as a model's classes do.
    """
    same = tuple(each for each in objects if _names(each.label) & _names(label))
    return same or tuple(objects)


def object_mask(
    objects: Sequence[MarkedObject], size: Size, box: Box, input_size: tuple[int, int]
) -> tuple[Mask, str] | tuple[None, str]:
    """(H, W) of the model's input: which of its pixels show an object; or None, and the reason why none does.

    ``size`` is the upright original image's (width, height), ``box`` where the model's view lies in it, as
    ``image.prepare`` returns it, ``input_size`` the input's (height, width). Pixel centres decide. What reaches beyond
    the image is cut off. Raises RequestError, with the object's source, for one that lies outside the image altogether,
    or was marked in an image of another size.
    """
    for each in objects:
        _require_inside(each, size)
    if not objects:
        return None, "no object is marked in it"
    x_W = _centres(box[0], box[2], input_size[1])
    y_H = _centres(box[1], box[3], input_size[0])
    # The border around an image that was fitted into the input shows no object.
    in_x, in_y = (x_W >= 0) & (x_W < size[0]), (y_H >= 0) & (y_H < size[1])
    mask_HW = np.zeros(input_size, bool)
    for each in objects:
        mask_HW[np.ix_(in_y, in_x)] |= each.covers(x_W[in_x], y_H[in_y])
    if not mask_HW.any():
        return None, "the model's view shows no pixel of the marked object"
    return mask_HW, ""


def _centres(first: float, last: float, pixels: int) -> NDArray[np.float64]:
    return np.asarray(first + (np.arange(pixels) + 0.5) * ((last - first) / pixels))


def _require_inside(marked: MarkedObject, size: Size) -> None:
    where = f"{marked.source}: " if marked.source else ""
    if marked.size is not None and marked.size != size:
        raise RequestError(
            f"{where}marked in an image of {_sides(marked.size)} pixels, this one has {_sides(size)} when upright; "
            "mark objects in the image that is evaluated, after its EXIF rotation"
        )
    left, top, right, bottom = marked.extent
    if right <= 0 or bottom <= 0 or left >= size[0] or top >= size[1]:
        raise RequestError(
            f"{where}an object from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) lies outside its image of "
            f"{_sides(size)} pixels; give pixels of the upright original image"
        )


def _inside(part: Sequence[tuple[float, float]], x_W: NDArray[Any], y_H: NDArray[Any]) -> Mask:
    """Whether a ray to the left crosses the outline an odd number of times."""
    inside_HW = np.zeros((len(y_H), len(x_W)), bool)
    for (x0, y0), (x1, y1) in zip(part, (*part[1:], part[0]), strict=True):
        rows = np.flatnonzero((y0 <= y_H) != (y1 <= y_H))
        crossings = x0 + (y_H[rows] - y0) * ((x1 - x0) / (y1 - y0)) if len(rows) else y_H[rows]
        inside_HW[rows] ^= x_W >= crossings[:, None]
    return inside_HW


def _names(label: str) -> set[str]:
    names = (" ".join(name.replace("_", " ").split()) for name in label.casefold().split(","))
    return {name for name in names if name}


def _sides(size: Size) -> str:
    return f"{size[0]} × {size[1]}"
