"""Windows that slide over an image: where they lie, and how their values become a map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convlens.errors import RequestError
from convlens.types import Floats, Ints


@dataclass(frozen=True)
class Windows:
    """Square windows of side ``window`` over an image of ``height`` × ``width`` pixels, ``stride`` apart.

    The last window of a row or column sits flush with the edge, so that every pixel is covered. A window larger than
    the image covers all of it. Raises RequestError when a stride would skip pixels.
    """

    height: int
    width: int
    window: int
    stride: int

    def __post_init__(self) -> None:
        if self.window < 1:
            raise RequestError(f"window={self.window} hides nothing; use 1 or more pixels", field="options.window")
        if not 1 <= self.stride <= self.window:
            raise RequestError(
                f"stride={self.stride} with window={self.window} would skip pixels or never move; use 1..{self.window}",
                field="options.stride",
            )

    @property
    def tops(self) -> Ints:
        return _starts(self.height, self.window, self.stride)

    @property
    def lefts(self) -> Ints:
        return _starts(self.width, self.window, self.stride)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return len(self.tops), len(self.lefts)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """(top, left) of every window, row by row."""
        return [(int(top), int(left)) for top in self.tops for left in self.lefts]

    def __len__(self) -> int:
        rows, columns = self.grid
        return rows * columns

    def mean_map(self, grid_NRQ: Floats) -> Floats:
        """(N, H, W): for each pixel the mean of the values of all windows that cover it."""
        # A window is a product of a row range and a column range, so two small matrix products replace a loop over
        # windows that would add up to R·Q whole maps.
        rows_RH = _coverage(self.tops, self.window, self.height)
        columns_QW = _coverage(self.lefts, self.window, self.width)
        total_NHW = np.einsum("nrq,rh,qw->nhw", grid_NRQ, rows_RH, columns_QW, optimize=True)
        return np.asarray((total_NHW / np.outer(rows_RH.sum(0), columns_QW.sum(0))).astype(grid_NRQ.dtype))


def _starts(length: int, window: int, stride: int) -> Ints:
    # Libraries treat the rest at the edge in different ways; moving the last window back keeps all windows of one size.
    last = max(length - window, 0)
    return np.unique(np.append(np.arange(0, last + 1, stride), last))


def _coverage(starts: Ints, window: int, length: int) -> Floats:
    """(windows, pixels): 1 where the window covers the pixel."""
    pixels = np.arange(length)
    return ((pixels >= starts[:, None]) & (pixels < starts[:, None] + window)).astype(np.float64)
