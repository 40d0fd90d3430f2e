"""Image quilting (Efros & Freeman 2001): blocks of the source, joined along minimum error boundary cuts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from torch import Tensor

from convlens.errors import RequestError
from convlens.models import Classifier
from convlens.synth.base import Job, Outcome, State, SynthesisRun, job, require_at_least, require_between
from convlens.synth.images import beside, read_rgb, require_texture
from convlens.types import Bytes8, Floats


@job("quilt")
@dataclass(frozen=True, kw_only=True)
class Quilt(Job):
    """``height`` × ``width`` pixels made of blocks of ``source``, each ``block`` pixels wide.

    Blocks overlap by ``overlap`` pixels; 0 is a sixth of a block, the paper's. A block is drawn at random from those
    whose error in the overlap is at most 1 + ``tolerance`` times the least, and joined along the minimum error cut.
    """

    needs_model = False

    source: str
    height: int = 512
    width: int = 512
    block: int = 48
    overlap: int = 0
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        require_between(4, 8192, self, "height", "width", "block")
        if not 0 <= self.overlap <= self.block // 2:
            raise RequestError(f"overlap should be from 0 to half a block, not {self.overlap}", field="overlap")
        require_at_least(0, self, "tolerance")

    def inputs(self) -> tuple[str, ...]:
        return (self.source,)

    def begin(self, classifier: Classifier | None) -> QuiltRun:
        return QuiltRun(self)


class QuiltRun(SynthesisRun):
    """A step lays a block, row by row. ``origin_HW2`` holds the row and column of the source that a pixel is from."""

    def __init__(self, job: Quilt) -> None:
        self._job = job
        self._source = read_rgb(job.source, field="source")
        height, width = self._source.shape[:2]
        if min(height, width) < job.block:
            raise RequestError(
                f"blocks of {job.block} pixels are larger than the source of {width}×{height}; take smaller ones",
                field="block",
            )
        require_texture(self._source)
        self._overlap = job.overlap or max(1, job.block // 6)
        self._tops, self._lefts = (_starts(length, job.block, self._overlap) for length in (job.height, job.width))
        self.total = len(self._tops) * len(self._lefts)
        self._rng = np.random.default_rng(job.seed)
        self._overlap_errors = _OverlapErrors(self._source.astype(np.float64), job.block, self._overlap)
        size = (self._tops[-1] + job.block, self._lefts[-1] + job.block)
        self._quilt = np.zeros((*size, self._source.shape[2]), np.uint8)
        self.origin_HW2 = np.full((*size, 2), -1, np.int32)

    def step(self) -> Mapping[str, Tensor | float]:
        row, column = divmod(self.done, len(self._lefts))
        top, left, block = self._tops[row], self._lefts[column], self._job.block
        old, neighbours = self._quilt[top : top + block, left : left + block], (row > 0, column > 0)
        error_YX = self._overlap_errors(old.astype(np.float64), *neighbours)
        near = np.flatnonzero(error_YX <= error_YX.min() * (1 + self._job.tolerance) + 1e-9)
        chosen = near[self._rng.integers(len(near))]
        y, x = divmod(int(chosen), error_YX.shape[1])
        new = self._source[y : y + block, x : x + block]
        shown = self._shown(old, new, *neighbours)
        old[shown] = new[shown]
        rows, columns = np.mgrid[y : y + block, x : x + block]
        self.origin_HW2[top : top + block, left : left + block][shown] = np.stack([rows, columns], 2)[shown]
        self.done += 1
        return {"objective": float(np.sqrt(error_YX.flat[chosen] / self._overlap_errors.count(*neighbours)))}

    def state_dict(self) -> State:
        return {
            "done": self.done,
            "quilt": torch.from_numpy(self._quilt.copy()),
            "origin": torch.from_numpy(self.origin_HW2.copy()),
            "chance": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        self.done = state["done"]
        self._quilt[:] = state["quilt"].numpy()
        self.origin_HW2[:] = state["origin"].numpy()
        self._rng.bit_generator.state = state["chance"]

    def snapshot(self) -> Bytes8:
        return self._quilt[: self._job.height, : self._job.width]

    def finish(self) -> Outcome:
        texture = self.snapshot().copy()
        facts: dict[str, Any] = {"blocks": self.total, "overlap": self._overlap}
        figure = beside([self._source, texture], ["sample", "texture made from it"])
        return Outcome({"texture": texture}, {"source-and-texture": figure}, facts)

    def _shown(self, old: Bytes8, new: Bytes8, above: bool, beside: bool) -> NDArray[np.bool_]:
        """Where the new block shows: beyond the cut of each overlap, in the corner beyond both."""
        shown = np.ones(old.shape[:2], bool)
        squared_HW = ((old.astype(np.float64) - new) ** 2).sum(2)
        if beside:
            shown[:, : self._overlap] &= beyond_cut(squared_HW[:, : self._overlap])
        if above:
            shown[: self._overlap] &= beyond_cut(squared_HW[: self._overlap].T).T
        return shown


def minimum_error_cut(error_RQ: Floats) -> NDArray[np.intp]:
    """The minimum error boundary cut: for each row of an overlap the column of the 8-connected path of least error.

    By dynamic programming: E(i, j) = e(i, j) + min of E(i − 1, j − 1), E(i − 1, j), E(i − 1, j + 1), then traced back
    from the least of the last row.
    """
    rows, columns = error_RQ.shape
    total_RQ = np.array(error_RQ, np.float64)
    for row in range(1, rows):
        above_Q = np.pad(total_RQ[row - 1], 1, constant_values=np.inf)
        total_RQ[row] += np.minimum(np.minimum(above_Q[:-2], above_Q[1:-1]), above_Q[2:])
    cut_R = np.empty(rows, np.intp)
    cut_R[-1] = total_RQ[-1].argmin()
    for row in range(rows - 2, -1, -1):
        low, high = max(0, cut_R[row + 1] - 1), min(columns, cut_R[row + 1] + 2)
        cut_R[row] = low + total_RQ[row, low:high].argmin()
    return cut_R


def beyond_cut(error_RQ: Floats) -> NDArray[np.bool_]:
    """Where the new block shows: right of the cut, and on it."""
    return np.arange(error_RQ.shape[1]) >= minimum_error_cut(error_RQ)[:, None]


def _starts(length: int, block: int, overlap: int) -> list[int]:
    """Where blocks begin, so that they cover the length; the last may reach beyond it."""
    step = block - overlap
    return [n * step for n in range(max(1, -(-(length - overlap) // step)))]


class _OverlapErrors:
    """Squared differences in the overlap between the quilt and every block of the source.

    Σ m (s − q)² = Σ m s² − 2 Σ m s q + Σ m q², with m 1 in the overlap: two correlations with the source, computed by
    Fourier transforms of which those of the source are made once. ``above`` and ``beside`` say where neighbours lie.
    """

    def __init__(self, source_HWC: Floats, block: int, overlap: int) -> None:
        self._block, self._overlap, self._channels = block, overlap, source_HWC.shape[2]
        height, width = source_HWC.shape[:2]
        self._room = height - block + 1, width - block + 1
        self._size = fft.next_fast_len(height, real=True), fft.next_fast_len(width, real=True)
        self._source = fft.rfft2(source_HWC, self._size, axes=(0, 1), workers=-1)
        squared = fft.rfft2((source_HWC**2).sum(2), self._size, workers=-1)
        neighbours = ((True, False), (False, True), (True, True))
        self._squared = {key: self._correlated(squared, self._mask(*key)) for key in neighbours}

    def __call__(self, quilt_HWC: Floats, above: bool, beside: bool) -> Floats:
        """Errors of the blocks by the (row, column) of the source where they begin."""
        if not above and not beside:
            return np.zeros(self._room)
        mask_HW = self._mask(above, beside)
        overlap_HWC = quilt_HWC * mask_HW[:, :, None]
        spectrum = np.conj(fft.rfft2(overlap_HWC, self._size, axes=(0, 1), workers=-1))
        crossed = fft.irfft2((self._source * spectrum).sum(2), self._size, workers=-1)[: self._room[0], : self._room[1]]
        # Rounding may leave an exact match a little below 0.
        error_YX: Floats = np.maximum(self._squared[above, beside] - 2 * crossed + (overlap_HWC**2).sum(), 0.0)
        return error_YX

    def count(self, above: bool, beside: bool) -> float:
        """How many values an overlap has, at least 1."""
        return max(1.0, float(self._mask(above, beside).sum() * self._channels))

    def _mask(self, above: bool, beside: bool) -> NDArray[np.float64]:
        mask_HW: NDArray[np.float64] = np.zeros((self._block, self._block))
        if above:
            mask_HW[: self._overlap] = 1
        if beside:
            mask_HW[:, : self._overlap] = 1
        return mask_HW

    def _correlated(self, spectrum: Any, mask_HW: Floats) -> Floats:
        correlation = fft.irfft2(spectrum * np.conj(fft.rfft2(mask_HW, self._size)), self._size, workers=-1)
        return np.asarray(correlation[: self._room[0], : self._room[1]])
