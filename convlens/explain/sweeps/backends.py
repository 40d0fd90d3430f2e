"""Where the windows of an occlusion sweep are scored: ``SweepBackend`` and the three classes that implement it.

``BatchedSweep`` occludes copies of the image and scores them in batches, ``ParallelSweep`` in several runs at once,
``GraphSweep`` leaves the whole sweep to one exported graph. A backend for another device is one more class here, added
to the list that ``torch_sweeps`` or ``graph_backends`` gives the autotuner; all backends give the same scores.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from convlens.explain.scores import Scorer, require_finite, scores_of
from convlens.explain.sweeps.windows import Windows
from convlens.runtime.graph_contract import GraphContract, Precision, Strategy
from convlens.runtime.memory import MAYBE_OUT_OF_MEMORY, free_gpu_cache, is_out_of_memory
from convlens.types import Floats, ScoreKind, no_op

# On two cores the default model's cost per image is flat from batches of 4 to 32 and rises beyond.
BATCH = 32
COPIES_PER_RUN = 2  # of parallel runs by ONNX Runtime: 1 to 4 were equally fast, 8 slower

OnWindows = Callable[[int], None]
_Corner = tuple[int, int]


@dataclass(frozen=True)
class SweepRequest:
    """Asks for ``target``'s score of one image with each of ``windows`` filled in turn.

    ``x_CHW`` and ``fill`` are in normalised units.
    """

    x_CHW: Tensor
    target: int
    windows: Windows
    fill: float
    score: ScoreKind


class SweepBackend(Protocol):
    """Scores one image with its windows filled in turn.

    ``name`` is the runtime and ``kind`` the form of the sweep, as in ``Meta``; ``note`` is a warning for
    results. ``strategies`` are those that it may serve, ``precision`` is that of its arithmetic. A run of fewer
    than ``fixed_run`` windows costs as much as of so many; it is 1 where each window costs its share.
    """

    name: str
    kind: str
    note: str
    strategies: tuple[Strategy, ...]
    precision: Precision
    fixed_run: int

    def supports(self, windows: Windows) -> bool:
        """Whether it can sweep these windows."""

    def is_set_up(self, request: SweepRequest) -> bool:
        """Whether its next sweep of this kind only computes, so that its time says how fast it is."""

    def scores(self, request: SweepRequest, on_windows: OnWindows) -> Floats:
        """(R, Q) scores; calls ``on_windows`` with the number of windows after each batch of them."""

    def scores_at(self, request: SweepRequest, positions: Sequence[int], on_windows: OnWindows = no_op) -> Floats:
        """Scores of some windows alone, by their positions row by row."""


class BatchedSweep:
    """Scores occluded copies of the image in batches."""

    kind, note = "batches", ""
    strategies: tuple[Strategy, ...] = ("full",)
    fixed_run = 1

    def __init__(self, scorer: Scorer, *, precision: Precision = "float32") -> None:
        self._scorer = scorer
        self.name = scorer.name
        self.precision: Precision = precision

    def supports(self, windows: Windows) -> bool:
        return True

    def is_set_up(self, request: SweepRequest) -> bool:
        return True

    def scores(self, request: SweepRequest, on_windows: OnWindows) -> Floats:
        return self._scores(request, request.windows.corners, on_windows).reshape(request.windows.grid)

    def scores_at(self, request: SweepRequest, positions: Sequence[int], on_windows: OnWindows = no_op) -> Floats:
        corners = request.windows.corners
        return self._scores(request, [corners[position] for position in positions], on_windows)

    def _scores(self, request: SweepRequest, corners: Sequence[_Corner], on_windows: OnWindows) -> Floats:
        parts, done, size = [], 0, BATCH
        while done < len(corners):
            logits_BK = require_finite(self._logits(request, corners[done : done + size]))
            parts.append(scores_of(logits_BK, request.score)[:, request.target])
            # A batch that had to shrink to fit into memory would not fit the next time either.
            done, size = done + len(logits_BK), min(size, len(logits_BK))
            on_windows(len(logits_BK))
        return np.concatenate(parts)

    def _logits(self, request: SweepRequest, corners: Sequence[_Corner]) -> Floats:
        """Logits of the first corners: of all, or of a quarter (again and again) where memory does not suffice."""
        try:
            return self._scorer.logits(_occluded(request, corners))
        except MAYBE_OUT_OF_MEMORY as error:
            if len(corners) == 1 or not is_out_of_memory(error):
                raise
        # Outside the except block: as long as the error lives, its traceback holds the tensors of the failed run.
        free_gpu_cache()
        return self._logits(request, corners[: max(1, len(corners) // 4)])


class ParallelScorer(Scorer, Protocol):
    """A scorer that runs several batches at once."""

    @property
    def parallel_runs(self) -> int: ...

    def logits_each(self, makers: Sequence[Callable[[], Tensor | Floats]]) -> Generator[Floats]: ...


class ParallelSweep(BatchedSweep):
    """As ``BatchedSweep``, by a graph that takes small batches in several runs at once, one per core."""

    def __init__(
        self, scorer: ParallelScorer, *, precision: Precision = "float32", copies: int = COPIES_PER_RUN
    ) -> None:
        """``copies`` of the image make a run."""
        super().__init__(scorer, precision=precision)
        self._parallel_scorer, self._copies = scorer, copies

    def _scores(self, request: SweepRequest, corners: Sequence[_Corner], on_windows: OnWindows) -> Floats:
        if self._parallel_scorer.parallel_runs == 1:
            return super()._scores(request, corners, on_windows)
        runs = [corners[first : first + self._copies] for first in range(0, len(corners), self._copies)]
        copies = _OccludedCopies(request, runs)
        makers = [partial(copies.of_run, n) for n in range(len(runs))]
        parts: list[Floats] = []
        try:
            # Closed here and not when its last reference goes: an error's traceback would hold its runs until then.
            with closing(self._parallel_scorer.logits_each(makers)) as results:
                for n, logits_BK in enumerate(results):
                    copies.release(n)
                    parts.append(scores_of(require_finite(logits_BK), request.score)[:, request.target])
                    on_windows(len(logits_BK))
        except MAYBE_OUT_OF_MEMORY as error:
            if not is_out_of_memory(error):
                raise
        else:
            return np.concatenate(parts)
        # One run at a time needs less memory than several; what is scored already stays.
        free_gpu_cache()
        remaining = corners[sum(map(len, parts)) :]
        return np.concatenate([*parts, super()._scores(request, remaining, on_windows)])


class SweepRuntime(Protocol):
    """An exported occlusion graph, opened."""

    @property
    def name(self) -> str: ...

    @property
    def contract(self) -> GraphContract: ...

    def sweep(self, x_CHW: Tensor | Floats, target: int, *, fill: float, score: ScoreKind) -> Floats: ...


class GraphSweep:
    """Scores all windows in one run of a graph that was exported for exactly these windows."""

    def __init__(self, runtime: SweepRuntime) -> None:
        geometry = runtime.contract.sweep
        assert geometry is not None, "the contract of an occlusion graph holds its windows"
        self._runtime, self._geometry = runtime, geometry
        self._size = runtime.contract.input_size
        self.name, self.note = runtime.name, geometry.note
        # The exporter writes a full graph where an incremental one would be slower, and says so in a note; such a
        # graph answers requests for either strategy.
        self.strategies: tuple[Strategy, ...] = ("full", "incremental") if geometry.note else (geometry.strategy,)
        self.kind = "incremental graph" if geometry.strategy == "incremental" else "graph"
        self.precision: Precision = runtime.contract.precision
        self.fixed_run = 1

    def supports(self, windows: Windows) -> bool:
        geometry = (windows.window, windows.stride, windows.height, windows.width)
        return geometry == (self._geometry.window, self._geometry.stride, *self._size)

    def is_set_up(self, request: SweepRequest) -> bool:
        return True

    def scores(self, request: SweepRequest, on_windows: OnWindows) -> Floats:
        score_RQ = require_finite(
            self._runtime.sweep(request.x_CHW, request.target, fill=request.fill, score=request.score)
        )
        on_windows(len(request.windows))
        return score_RQ

    def scores_at(self, request: SweepRequest, positions: Sequence[int], on_windows: OnWindows = no_op) -> Floats:
        return self.scores(request, on_windows).reshape(-1)[list(positions)]


def _occluded(request: SweepRequest, corners: Sequence[_Corner]) -> Tensor:
    """(B, C, H, W): copies of the image, each with another window filled."""
    # clone, because contiguous() of a single copy would be the image itself, and the window would stay in it.
    # Channels first, as ONNX Runtime reads it; for torch the runtime changes the layout, which costs it less.
    x_BCHW = request.x_CHW.expand(len(corners), -1, -1, -1).clone(memory_format=torch.contiguous_format)
    _fill(x_BCHW, request, corners)
    return x_BCHW


class _OccludedCopies:
    """The images of parallel runs; a later run of the same thread gets the copies of one that has ended.

    New copies for each run cost page faults, and their sweep took up to 20 % longer wherever freed memory went back to
    the system, as in anybody's script.
    """

    # numpy copies in the calling thread; torch would share out the copying of each parallel run to more threads.

    def __init__(self, request: SweepRequest, runs: Sequence[Sequence[_Corner]]) -> None:
        self._request, self._runs = request, runs
        self._image_CHW = request.x_CHW.detach().cpu().numpy()
        self._idle: defaultdict[int, list[_Copies]] = defaultdict(list)  # by thread: another core's are read slowly
        self._used: dict[int, tuple[int, _Copies]] = {}

    def of_run(self, run: int) -> Floats:
        """(B, C, H, W): a copy for each window of the run, with it filled; good until its ``release``."""
        thread, corners, side = threading.get_ident(), self._runs[run], self._request.windows.window
        copies = self._idle[thread].pop() if self._idle[thread] else self._new()
        for n, (top, left) in enumerate(copies.filled):
            rows, columns = slice(top, top + side), slice(left, left + side)
            copies.x_BCHW[n, :, rows, columns] = self._image_CHW[:, rows, columns]
        _fill(copies.x_BCHW, self._request, corners)
        copies.filled = corners
        self._used[run] = thread, copies
        return copies.x_BCHW[: len(corners)]

    def release(self, run: int) -> None:
        """Nobody reads the run's images any more."""
        thread, copies = self._used.pop(run)
        self._idle[thread].append(copies)

    def _new(self) -> _Copies:
        return _Copies(np.repeat(self._image_CHW[None], max(map(len, self._runs)), axis=0))


@dataclass
class _Copies:
    """Copies of an image, the first of them with the windows at ``filled`` in place of its pixels."""

    x_BCHW: Floats
    filled: Sequence[_Corner] = ()


def _fill(x_BCHW: Tensor | Floats, request: SweepRequest, corners: Sequence[_Corner]) -> None:
    side = request.windows.window
    for n, (top, left) in enumerate(corners):
        x_BCHW[n, :, top : top + side, left : left + side] = request.fill
