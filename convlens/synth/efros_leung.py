"""Texture pixel by pixel (Efros & Leung 1999): each is the middle of a window of the source that looks like its own."""

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
from convlens.synth.base import Job, Outcome, State, SynthesisRun, job
from convlens.synth.images import middle_square, read_rgb, require_texture
from convlens.types import Bytes8, Floats
from convlens.visualization.layout import hstack

_SEED_SIDE, _MOST_WORSE = 3, 1.1


@job("efros")
@dataclass(frozen=True, kw_only=True)
class EfrosLeung(Job):
    """``height`` × ``width`` pixels grown from a 3 × 3 patch of ``source``, which is resized to ``source_side`` first.

    A pixel is drawn at random from the middles of those windows of the source that differ from its own by no more than
    1 + ``error_threshold`` times the least. The difference is the mean of squares over the known pixels, weighted by a
    Gaussian of ``window`` / 6.4. Where it is above ``max_error`` the pixel waits; where all must wait, that grows by a
    tenth. Work grows with the pixels of both pictures: 64² from 64² takes seconds, 192² minutes.
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
        for name in ("source_side", "height", "width"):
            if not _SEED_SIDE <= getattr(self, name) <= 1024:
                raise RequestError(f"{name} should be from 3 to 1024, not {getattr(self, name)}", field=name)
        for name in ("error_threshold", "max_error"):
            if not getattr(self, name) > 0:
                raise RequestError(f"{name} should be above 0, not {getattr(self, name)}", field=name)

    def inputs(self) -> tuple[str, ...]:
        return (self.source,)

    def begin(self, classifier: Classifier | None) -> EfrosRun:
        return EfrosRun(self)


class EfrosRun(SynthesisRun):
    """A step is a layer of pixels: those next to known ones. ``origin_HW2`` says where in the source each is from."""

    def __init__(self, job: EfrosLeung) -> None:
        self._job = job
        self._source = middle_square(read_rgb(job.source, field="source"), job.source_side)
        require_texture(self._source)
        self._chance = np.random.default_rng(job.seed)
        reach = job.window // 2
        plain = self._source.astype(np.float64) / 255
        windows = np.lib.stride_tricks.sliding_window_view(plain, (job.window, job.window), axis=(0, 1))
        self._across = windows.shape[1]
        # A row a window: its masked distances are then two products of a matrix and a vector.
        flat = windows.transpose(0, 1, 3, 4, 2).reshape(-1, job.window**2, plain.shape[2])
        self._squared_MP = (flat**2).sum(2)
        self._flat_MV = np.ascontiguousarray(flat.reshape(len(flat), -1))
        at = np.arange(-reach, reach + 1)
        gauss = np.exp(-(at**2) / (2 * (job.window / 6.4) ** 2))
        self._weight_P = np.outer(gauss, gauss).ravel()
        self._reach, self._max_error = reach, job.max_error
        size = (job.height, job.width)
        self._picture = np.zeros((*size, plain.shape[2]), np.uint8)
        self.origin_HW2 = np.full((*size, 2), -1, np.int32)
        self._plant()
        self.total = job.height * job.width - min(_SEED_SIDE, job.height) * min(_SEED_SIDE, job.width)

    def step(self) -> Mapping[str, Tensor | float]:
        known = self.origin_HW2[:, :, 0] >= 0
        edge = np.argwhere(ndimage.binary_dilation(known, np.ones((3, 3), bool)) & ~known)
        counts = ndimage.uniform_filter(known.astype(np.float64), self._job.window, mode="constant")
        order = np.argsort(-counts[edge[:, 0], edge[:, 1]], kind="stable")
        grown, worst = 0, 0.0
        while not grown:
            for y, x in edge[order]:
                error = self._grow(int(y), int(x))
                if error is not None:
                    grown, worst = grown + 1, max(worst, error)
            if not grown:
                self._max_error *= _MOST_WORSE
        self.done += grown
        return {"objective": worst}

    def state_dict(self) -> State:
        return {
            "done": self.done,
            "picture": torch.from_numpy(self._picture.copy()),
            "origin": torch.from_numpy(self.origin_HW2.copy()),
            "max_error": self._max_error,
            "chance": self._chance.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        self.done = state["done"]
        self._picture[:] = state["picture"].numpy()
        self.origin_HW2[:] = state["origin"].numpy()
        self._max_error = state["max_error"]
        self._chance.bit_generator.state = state["chance"]

    def snapshot(self) -> Bytes8:
        return self._picture

    def finish(self) -> Outcome:
        found = self._picture.copy()
        facts: dict[str, Any] = {"max_error": self._max_error}
        return Outcome({"texture": found}, {"source-and-texture": hstack([self._source, found], gap=8)}, facts)

    def _plant(self) -> None:
        """A patch of the source in the middle."""
        side = self._job.source_side
        height, width = (min(_SEED_SIDE, length) for length in (self._job.height, self._job.width))
        y, x = (int(self._chance.integers(side - length + 1)) for length in (height, width))
        top, left = (self._job.height - height) // 2, (self._job.width - width) // 2
        self._picture[top : top + height, left : left + width] = self._source[y : y + height, x : x + width]
        origin = np.moveaxis(np.mgrid[y : y + height, x : x + width], 0, 2)
        self.origin_HW2[top : top + height, left : left + width] = origin

    def _grow(self, y: int, x: int) -> float | None:
        """Fill the pixel; its window's error, or None where that is too large."""
        error_M = self._errors(y, x)
        near = np.flatnonzero(error_M <= error_M.min() * (1 + self._job.error_threshold))
        chosen = int(near[self._chance.integers(len(near))])
        if error_M[chosen] >= self._max_error:
            return None
        row, column = divmod(chosen, self._across)
        at = row + self._reach, column + self._reach
        self._picture[y, x], self.origin_HW2[y, x] = self._source[at], at
        return float(error_M[chosen])

    def _errors(self, y: int, x: int) -> Floats:
        """Of every window of the source: weighted mean of squared differences over the pixels that are known."""
        reach = self._reach
        rows, columns = np.arange(y - reach, y + reach + 1), np.arange(x - reach, x + reach + 1)
        inside = (rows >= 0) & (rows < self._job.height), (columns >= 0) & (columns < self._job.width)
        rows_, columns_ = rows.clip(0, self._job.height - 1), columns.clip(0, self._job.width - 1)
        grid = np.ix_(rows_, columns_)
        known_P = ((self.origin_HW2[..., 0][grid] >= 0) & inside[0][:, None] & inside[1]).ravel()
        weight_P = self._weight_P * known_P
        weight_P /= weight_P.sum()
        there_PC = self._picture[grid].reshape(len(known_P), -1) / 255
        crossed_M = self._flat_MV @ (there_PC * weight_P[:, None]).ravel()
        own = float((weight_P * (there_PC**2).sum(1)).sum())
        found: Floats = np.maximum(self._squared_MP @ weight_P - 2 * crossed_M + own, 0.0)
        return found
