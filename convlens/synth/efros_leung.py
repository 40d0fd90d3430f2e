"""Non-parametric texture synthesis, pixel by pixel (Efros & Leung 1999).

Each pixel is the middle of a window of the source that resembles the pixel's own neighbourhood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from convlens.errors import RequestError
from convlens.models import Classifier
from convlens.synth.base import Job, Outcome, State, SynthesisRun, job, require_between, require_positive
from convlens.synth.images import beside, center_square, read_rgb, require_texture
from convlens.types import Bytes8, Floats

_SEED_SIDE = 3  # pixels of the patch that the texture grows from
_ERROR_GROWTH = 1.1  # of the largest error where no pixel of the frontier can be filled


@job("efros")
@dataclass(frozen=True, kw_only=True)
class EfrosLeung(Job):
    """``height`` × ``width`` pixels grown from a 3 × 3 patch of ``source``, which is resized to ``source_side`` first.

    A pixel is drawn at random from the middles of the source's windows whose error is at most 1 + ``error_threshold``
    times the least. The error is the mean squared difference (of values 0..1) over the known pixels of the pixel's own
    window, weighted by a Gaussian of sigma ``window`` / 6.4. A pixel with an error of ``max_error`` or more waits;
    where all wait, ``max_error`` grows by a tenth. The time grows with the pixels of both images: 64² from 64² takes
    seconds, 192² minutes.
    """

    needs_model = False

    source: str
    source_side: int = 64
    height: int = 96
    width: int = 96
    window: int = 11
    error_threshold: float = 0.1
    max_error: float = 0.3

    def __post_init__(self) -> None:
        if self.window < 3 or self.window % 2 == 0:
            raise RequestError(f"window should be odd and 3 or more, not {self.window}", field="window")
        if self.window > self.source_side:
            raise RequestError(
                f"a window of {self.window} pixels is larger than the source of {self.source_side}; take a smaller one",
                field="window",
            )
        require_between(_SEED_SIDE, 1024, self, "source_side", "height", "width")
        require_positive(self, "error_threshold", "max_error")

    def inputs(self) -> tuple[str, ...]:
        return (self.source,)

    def begin(self, classifier: Classifier | None) -> EfrosRun:
        return EfrosRun(self)


class EfrosRun(SynthesisRun):
    """A step fills the frontier: the unknown pixels next to known ones.

    ``origin_HW2`` holds for each pixel the row and column of the source it is from, -1 while it is unknown.
    """

    def __init__(self, job: EfrosLeung) -> None:
        self._job = job
        self._source = center_square(read_rgb(job.source, field="source"), job.source_side)
        require_texture(self._source)
        self._rng = np.random.default_rng(job.seed)
        reach = job.window // 2
        source = self._source.astype(np.float64) / 255
        windows = np.lib.stride_tricks.sliding_window_view(source, (job.window, job.window), axis=(0, 1))
        self._columns = windows.shape[1]
        # One row for each window: all masked errors are then two products of a matrix and a vector (see ``_errors``).
        flat_MPC = windows.transpose(0, 1, 3, 4, 2).reshape(-1, job.window**2, source.shape[2])
        self._squared_MP = (flat_MPC**2).sum(2)
        self._flat_MV = np.ascontiguousarray(flat_MPC.reshape(len(flat_MPC), -1))
        offsets = np.arange(-reach, reach + 1)
        gauss = np.exp(-(offsets**2) / (2 * (job.window / 6.4) ** 2))
        self._weight_P = np.outer(gauss, gauss).ravel()
        self._reach, self._max_error = reach, job.max_error
        size = (job.height, job.width)
        self._texture = np.zeros((*size, source.shape[2]), np.uint8)
        self.origin_HW2 = np.full((*size, 2), -1, np.int32)
        self._place_seed()
        self.total = job.height * job.width - min(_SEED_SIDE, job.height) * min(_SEED_SIDE, job.width)

    def step(self) -> Mapping[str, Tensor | float]:
        known = self.origin_HW2[:, :, 0] >= 0
        frontier = np.argwhere(ndimage.binary_dilation(known, np.ones((3, 3), bool)) & ~known)
        # Pixels with the most known neighbours first.
        counts = ndimage.uniform_filter(known.astype(np.float64), self._job.window, mode="constant")
        order = np.argsort(-counts[frontier[:, 0], frontier[:, 1]], kind="stable")
        filled, worst = 0, 0.0
        while not filled:
            for y, x in frontier[order]:
                error = self._fill(int(y), int(x))
                if error is not None:
                    filled, worst = filled + 1, max(worst, error)
            if not filled:
                self._max_error *= _ERROR_GROWTH
        self.done += filled
        return {"objective": worst}

    def state_dict(self) -> State:
        return {
            "done": self.done,
            "picture": torch.from_numpy(self._texture.copy()),
            "origin": torch.from_numpy(self.origin_HW2.copy()),
            "max_error": self._max_error,
            "chance": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        self.done = state["done"]
        self._texture[:] = state["picture"].numpy()
        self.origin_HW2[:] = state["origin"].numpy()
        self._max_error = state["max_error"]
        self._rng.bit_generator.state = state["chance"]

    def snapshot(self) -> Bytes8:
        return self._texture

    def finish(self) -> Outcome:
        texture = self._texture.copy()
        facts: dict[str, Any] = {"max_error": self._max_error}
        figure = beside([self._source, texture], ["sample", "texture made from it"])
        return Outcome({"texture": texture}, {"source-and-texture": figure}, facts)

    def _place_seed(self) -> None:
        """Copy a random patch of the source into the middle."""
        side = self._job.source_side
        height, width = (min(_SEED_SIDE, length) for length in (self._job.height, self._job.width))
        y, x = (int(self._rng.integers(side - length + 1)) for length in (height, width))
        top, left = (self._job.height - height) // 2, (self._job.width - width) // 2
        self._texture[top : top + height, left : left + width] = self._source[y : y + height, x : x + width]
        origin = np.moveaxis(np.mgrid[y : y + height, x : x + width], 0, 2)
        self.origin_HW2[top : top + height, left : left + width] = origin

    def _fill(self, y: int, x: int) -> float | None:
        """Fill the pixel and return its window's error, or None where that is too large."""
        error_M = self._errors(y, x)
        near = np.flatnonzero(error_M <= error_M.min() * (1 + self._job.error_threshold))
        chosen = int(near[self._rng.integers(len(near))])
        if error_M[chosen] >= self._max_error:
            return None
        row, column = divmod(chosen, self._columns)
        middle = row + self._reach, column + self._reach
        self._texture[y, x], self.origin_HW2[y, x] = self._source[middle], middle
        return float(error_M[chosen])

    def _errors(self, y: int, x: int) -> Floats:
        """Of every window of the source: Σ w (s − t)² = Σ w s² − 2 Σ w s t + Σ w t², with w 0 at unknown pixels."""
        reach = self._reach
        rows, columns = np.arange(y - reach, y + reach + 1), np.arange(x - reach, x + reach + 1)
        inside = (rows >= 0) & (rows < self._job.height), (columns >= 0) & (columns < self._job.width)
        rows_, columns_ = rows.clip(0, self._job.height - 1), columns.clip(0, self._job.width - 1)
        grid = np.ix_(rows_, columns_)
        known_P = ((self.origin_HW2[..., 0][grid] >= 0) & inside[0][:, None] & inside[1]).ravel()
        weight_P = self._weight_P * known_P
        weight_P /= weight_P.sum()  # over the known pixels alone, so that errors of different neighbourhoods compare
        own_PC = self._texture[grid].reshape(len(known_P), -1) / 255
        crossed_M = self._flat_MV @ (own_PC * weight_P[:, None]).ravel()
        own_squared = float((weight_P * (own_PC**2).sum(1)).sum())
        # Rounding may leave an exact match a little below 0.
        error_M: Floats = np.maximum(self._squared_MP @ weight_P - 2 * crossed_M + own_squared, 0.0)
        return error_M
