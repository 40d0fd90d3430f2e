"""The receptive fields of a layer's units: frozen, in pixels."""

from __future__ import annotations

from dataclasses import dataclass

from convlens.errors import RequestError
from convlens.types import Ints

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Field:
    """What each unit of a layer looks at, in pixels of the picture that the network is fed, whatever the channel.

    ``picture`` is that picture's height and width, ``grid`` the layer's rows and columns of units; where a layer has
    lost its map (flattened, fully connected) it is (1, 1). ``reach_4YX`` and ``seen_4YX`` hold for each unit top, left,
    bottom and right, the last two exclusive: as if the picture went on beyond its border, and the pixels that count.
    """

    layer: str
    kind: str
    picture: tuple[int, int]
    reach_4YX: Ints
    seen_4YX: Ints

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.reach_4YX.shape[1:]
        return rows, columns

    def box(self, y: int, x: int) -> Box:
        """Top, left, bottom, right (the last two exclusive) of the unit's field, beyond the border where it pads.

        Of an ordinary convolutional layer all units' boxes have one size and equal distances: cut them from a padded
        picture. A unit behind a mean over the whole map, or fully connected, has the picture for a box. RequestError
        for a unit that is not in the grid.
        """
        return self._at(self.reach_4YX, y, x)

    def clipped(self, y: int, x: int) -> Box:
        """The smallest rectangle of the picture that holds every pixel which the unit depends on; (0, 0, 0, 0) if none.

        Mostly the box cut at the border. It is smaller where the last pixels fall between two steps of a stride, and no
        unit reads them. RequestError for a unit that is not in the grid.
        """
        return self._at(self.seen_4YX, y, x)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the largest box."""
        top, left, bottom, right = self.reach_4YX
        return int((bottom - top).max()), int((right - left).max())

    @property
    def uniform(self) -> bool:
        """Whether all boxes have one size."""
        top, left, bottom, right = self.reach_4YX
        return bool(((bottom - top) == self.size[0]).all() and ((right - left) == self.size[1]).all())

    @property
    def stride(self) -> tuple[int, int] | None:
        """Pixels from one unit's box to the next, down and across; None where that differs or there is no next one."""
        top, left = self.reach_4YX[:2]
        down, across = top[1:] - top[:-1], left[:, 1:] - left[:, :-1]
        if not down.size or not across.size or (down != down.flat[0]).any() or (across != across.flat[0]).any():
            return None
        return int(down.flat[0]), int(across.flat[0])

    @property
    def start(self) -> tuple[int, int]:
        """Top and left of the first unit's box: negative where it begins in the padding."""
        return int(self.reach_4YX[0, 0, 0]), int(self.reach_4YX[1, 0, 0])

    def _at(self, boxes_4YX: Ints, y: int, x: int) -> Box:
        rows, columns = self.grid
        if not (0 <= y < rows and 0 <= x < columns):
            raise RequestError(
                f"layer {self.layer!r} has no unit at row {y}, column {x}; there are rows 0..{rows - 1} "
                f"and columns 0..{columns - 1}",
                field="at",
            )
        top, left, bottom, right = (int(value) for value in boxes_4YX[:, y, x])
        return top, left, bottom, right
