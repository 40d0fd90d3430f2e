"""The ways of making an occlusion sweep: hidden copies in batches, or one exported graph that does it all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from convlens.explain.scores import Scorer, finite, scores_of
from convlens.explain.sweeps.windows import Windows
from convlens.runtime.graph_contract import GraphContract, Precision, Strategy
from convlens.runtime.memory import MAYBE_OUT_OF_MEMORY, free_gpu_cache, is_out_of_memory
from convlens.types import Floats, ScoreKind, no_op

BATCH = 32
FEW = 2  # copies of a run, where runs go side by side: 1 to 4 were equally fast, 8 slower

OnWindows = Callable[[int], None]
Corner = tuple[int, int]


class SideScorer(Scorer, Protocol):
    """One that can score several batches at once."""

    @property
    def parallel_runs(self) -> int: ...

    def logits_each(self, makers: Sequence[Callable[[], Tensor | Floats]]) -> Iterator[Floats]: ...


class SweepRuntime(Protocol):
    """An exported occlusion graph, opened."""

    @property
    def name(self) -> str: ...

    @property
    def contract(self) -> GraphContract: ...

    def sweep(self, x_CHW: Tensor | Floats, target: int, *, fill: float, score: ScoreKind) -> Floats: ...


class SweepBackend(Protocol):
    """One way of scoring a picture with windows hidden in turn.

    ``kind`` says how, ``name`` who computes; ``note`` what the user should know of it. ``strategies`` are those that it
    may be taken for.
    """

    name: str
    kind: str
    note: str
    strategies: tuple[Strategy, ...]
    precision: Precision

    def fits(self, windows: Windows) -> bool:
        """Whether it can sweep these windows."""

    def scores(
        self, x_CHW: Tensor, target: int, windows: Windows, fill: float, score: ScoreKind, on_windows: OnWindows
    ) -> Floats:
        """The target's score with each window hidden (R, Q); ``on_windows`` is told how many more are done."""

    def some(
        self, x_CHW: Tensor, target: int, windows: Windows, fill: float, score: ScoreKind, at: Sequence[int]
    ) -> Floats:
        """The same for some of the windows alone, by their positions row by row."""


class BatchedSweep:
    """Copies of the picture, each with another window filled, in batches through a scorer."""

    kind, note = "batches", ""
    strategies: tuple[Strategy, ...] = ("full",)

    def __init__(self, scorer: Scorer, *, precision: Precision = "float32") -> None:
        self._scorer = scorer
        self.name = scorer.name
        self.precision: Precision = precision

    def fits(self, windows: Windows) -> bool:
        return True

    def scores(
        self, x_CHW: Tensor, target: int, windows: Windows, fill: float, score: ScoreKind, on_windows: OnWindows
    ) -> Floats:
        found = self._scores(x_CHW, target, windows.corners, windows.window, fill, score, on_windows)
        return found.reshape(len(windows.tops), len(windows.lefts))

    def some(
        self, x_CHW: Tensor, target: int, windows: Windows, fill: float, score: ScoreKind, at: Sequence[int]
    ) -> Floats:
        corners = [windows.corners[position] for position in at]
        return self._scores(x_CHW, target, corners, windows.window, fill, score, no_op)

    def _scores(
        self,
        x_CHW: Tensor,
        target: int,
        corners: Sequence[Corner],
        window: int,
        fill: float,
        score: ScoreKind,
        on_windows: OnWindows,
    ) -> Floats:
        parts, done, size = [], 0, BATCH
        while done < len(corners):
            logits_BK = finite(self._logits(x_CHW, corners[done : done + size], window, fill))
            parts.append(scores_of(logits_BK, score)[:, target])
            done, size = done + len(logits_BK), min(size, len(logits_BK))
            on_windows(len(logits_BK))
        return np.concatenate(parts)

    def _logits(self, x_CHW: Tensor, corners: Sequence[Corner], window: int, fill: float) -> Floats:
        """Of all, or of the first quarter where memory does not suffice for all at once, or of a quarter of that."""
        try:
            return self._scorer.logits(hidden(x_CHW, corners, window, fill))
        except MAYBE_OUT_OF_MEMORY as error:
            if len(corners) == 1 or not is_out_of_memory(error):
                raise
        free_gpu_cache()  # here, where the failed try's tensors are gone with its traceback
        return self._logits(x_CHW, corners[: max(1, len(corners) // 4)], window, fill)


class ParallelSweep(BatchedSweep):
    """As ``BatchedSweep``, by a graph whose runs go on side by side, a few copies each."""

    def __init__(self, scorer: SideScorer, *, precision: Precision = "float32") -> None:
        super().__init__(scorer, precision=precision)
        self._side_scorer = scorer

    def _scores(
        self,
        x_CHW: Tensor,
        target: int,
        corners: Sequence[Corner],
        window: int,
        fill: float,
        score: ScoreKind,
        on_windows: OnWindows,
    ) -> Floats:
        if self._side_scorer.parallel_runs == 1:
            return super()._scores(x_CHW, target, corners, window, fill, score, on_windows)
        picture = x_CHW.detach().cpu().numpy()
        makers = [partial(_copies, picture, few, window, fill) for few in _groups(corners, FEW)]
        parts: list[Floats] = []
        try:
            for logits_BK in self._side_scorer.logits_each(makers):
                parts.append(scores_of(finite(logits_BK), score)[:, target])
                on_windows(len(logits_BK))
        except MAYBE_OUT_OF_MEMORY as error:
            if not is_out_of_memory(error):
                raise
        else:
            return np.concatenate(parts)
        free_gpu_cache()
        left = corners[sum(map(len, parts)) :]
        return np.concatenate([*parts, super()._scores(x_CHW, target, left, window, fill, score, on_windows)])


class GraphSweep:
    """A whole sweep by one run of an exported graph of these very windows."""

    def __init__(self, runtime: SweepRuntime) -> None:
        geometry = runtime.contract.sweep
        assert geometry is not None, "the contract of an occlusion graph holds its windows"
        self._runtime, self._geometry = runtime, geometry
        self._side = runtime.contract.crop
        self.name, self.note = runtime.name, geometry.note
        # One that was to be incremental and was written in full, because that is faster, says so in its note.
        self.strategies: tuple[Strategy, ...] = ("full", "incremental") if geometry.note else (geometry.strategy,)
        self.kind = "incremental graph" if geometry.strategy == "incremental" else "graph"
        self.precision: Precision = runtime.contract.precision

    def fits(self, windows: Windows) -> bool:
        wanted = (windows.window, windows.stride, windows.height, windows.width)
        return wanted == (self._geometry.window, self._geometry.stride, self._side, self._side)

    def scores(
        self, x_CHW: Tensor, target: int, windows: Windows, fill: float, score: ScoreKind, on_windows: OnWindows
    ) -> Floats:
        found = finite(self._runtime.sweep(x_CHW, target, fill=fill, score=score))
        on_windows(len(windows))
        return found

    def some(
        self, x_CHW: Tensor, target: int, windows: Windows, fill: float, score: ScoreKind, at: Sequence[int]
    ) -> Floats:
        return self.scores(x_CHW, target, windows, fill, score, no_op).reshape(-1)[list(at)]


def hidden(x_CHW: Tensor, corners: Sequence[Corner], window: int, fill: float) -> Tensor:
    """Copies of the picture, each with another window filled; (B, C, H, W)."""
    # clone, not contiguous: of one window alone that would be the picture itself, and the window would stay in it.
    # As ONNX Runtime reads it; torch lays it out anew, which costs it less.
    x_BCHW = x_CHW.expand(len(corners), -1, -1, -1).clone(memory_format=torch.contiguous_format)
    for copy_CHW, (top, left) in zip(x_BCHW, corners, strict=True):
        copy_CHW[:, top : top + window, left : left + window] = fill
    return x_BCHW


def _copies(x_CHW: Floats, corners: Sequence[Corner], window: int, fill: float) -> Floats:
    """As ``hidden``, by numpy: torch would have each of the threads share its copying with threads of its own."""
    x_BCHW = np.repeat(x_CHW[None], len(corners), axis=0)
    for copy_CHW, (top, left) in zip(x_BCHW, corners, strict=True):
        copy_CHW[:, top : top + window, left : left + window] = fill
    return x_BCHW


def _groups(corners: Sequence[Corner], size: int) -> list[Sequence[Corner]]:
    return [corners[first : first + size] for first in range(0, len(corners), size)]
