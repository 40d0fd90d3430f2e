"""Which way a sweep takes: of those that give the same scores the fastest, by how long each took the last time.

SweepAutotuner in half precision: where that is faster, and with the deviation it costs.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from convlens.errors import RequestError
from convlens.explain.sweeps.backends import OnWindows, SweepBackend
from convlens.explain.sweeps.windows import Windows
from convlens.runtime.graph_contract import Precision, Strategy
from convlens.runtime.memory import MAYBE_OUT_OF_MEMORY, free_gpu_cache, is_out_of_memory
from convlens.types import Floats, ScoreKind


class SweepAutotuner:
    """The ways of sweeping that one model has; safe to use from several threads.

    ``ways`` come in the order in which they are expected to be fast. Each that fits is taken once, in that order; from
    then on the one that took least time a window when it was last taken. So nothing is computed just to be timed, and a
    way that has become slow is left.
    """

    def __init__(self, ways: Sequence[SweepBackend]) -> None:
        self.ways = tuple(ways)
        self._seconds: dict[
            tuple[SweepBackend, int], float
        ] = {}  # by way and window; a window's work hardly depends on more

    def choose(
        self, windows: Windows, *, strategy: Strategy = "full", precision: Precision = "float32"
    ) -> SweepBackend | None:
        """The way to take now, or None where none of that strategy and precision fits."""
        allowed = [way for way in self.ways if strategy in way.strategies and way.precision == precision]
        fitting = [way for way in allowed if way.fits(windows)]
        untried = [way for way in fitting if (way, windows.window) not in self._seconds]
        if untried:
            return untried[0]
        return min(fitting, key=lambda way: self._seconds[way, windows.window], default=None)

    @property
    def reference(self) -> SweepBackend:
        """A way that scores single windows in full precision, for comparisons."""
        return next(way for way in self.ways if (way.kind, way.precision) == ("batches", "float32"))

    def pace(self, way: SweepBackend, windows: Windows) -> float | None:
        """Seconds a window when this way was last taken with windows of this size; None where it never was."""
        return self._seconds.get((way, windows.window))

    def require(self, windows: Windows, strategy: Strategy) -> tuple[SweepBackend, str]:
        """The way to take now, in full precision, and what the user should know of it.

        Where the graph for an ``incremental`` sweep says that a full one is faster, any way of making that will do.
        RequestError for ``incremental`` without a graph of these windows.
        """
        way = self.choose(windows, strategy=strategy)
        if way is None:
            raise RequestError(
                f"strategy={strategy!r} needs a graph of these windows; write one by `convlens export occlusion "
                f"--strategy {strategy} --window {windows.window} --stride {windows.stride}` and give it by --graphs",
                field="options.strategy",
            )
        if strategy == "full":
            return way, ""
        return (self.choose(windows) or way) if "full" in way.strategies else way, way.note

    def timed(
        self,
        way: SweepBackend,
        x_CHW: Tensor,
        target: int,
        windows: Windows,
        fill: float,
        score: ScoreKind,
        on_windows: OnWindows,
    ) -> Floats:
        """The scores by this way; how long it took is remembered.

        Where memory does not suffice for a graph of the whole sweep, the windows go in batches, which need less.
        """
        started = time.perf_counter()
        try:
            score_RQ = way.scores(x_CHW, target, windows, fill, score, on_windows)
        except MAYBE_OUT_OF_MEMORY as error:
            if not is_out_of_memory(error) or way.kind == "batches" or way.precision != self.reference.precision:
                raise
        else:
            self._seconds[way, windows.window] = (time.perf_counter() - started) / len(windows)
            return score_RQ
        free_gpu_cache()
        return self.reference.scores(x_CHW, target, windows, fill, score, on_windows)


# So many windows, spread over the picture, are scored in full precision too.
SAMPLE = 8


@dataclass(frozen=True)
class HalfTorch:
    """The network in float16 on a GPU, in bfloat16 on the CPU; its logits come back as float32.

    It works on a copy of its own, made when first used: the model itself keeps its precision.
    """

    module: nn.Module
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.device.type == "cuda" else torch.bfloat16

    @property
    def name(self) -> str:
        return f"torch:{str(self.dtype).removeprefix('torch.')}"

    def logits(self, x_NCHW: Tensor | Floats) -> Floats:
        """Logits (N, K), float32."""
        x = torch.as_tensor(x_NCHW).to(device=self.device, dtype=self.dtype, memory_format=torch.channels_last)
        with torch.inference_mode():
            return np.asarray(self._copy(x).float().cpu().numpy())

    @functools.cached_property
    def _copy(self) -> nn.Module:
        return copy.deepcopy(self.module).to(self.dtype)


@dataclass(frozen=True)
class HalfSwept:
    """The scores (R, Q) and the way that was taken.

    ``deviation`` is max |half - full| / max |full| over a sample of windows, 0 where full was taken; then ``warning``
    says why.
    """

    score_RQ: Floats
    way: SweepBackend
    deviation: float
    warning: str = ""


def half_sweep(
    sweeps: SweepAutotuner,
    x_CHW: Tensor,
    target: int,
    windows: Windows,
    *,
    fill: float,
    score: ScoreKind,
    on_windows: OnWindows,
) -> HalfSwept:
    """One picture's sweep in half precision, or in full where half has been, or on a sample is, no faster."""
    at = np.unique(np.linspace(0, len(windows) - 1, SAMPLE).round().astype(int)).tolist()
    half, full = sweeps.choose(windows, precision="half"), sweeps.choose(windows)
    assert full is not None, "a model can always be swept in batches"

    def pace(way: SweepBackend) -> float:
        """Seconds a window."""
        known = sweeps.pace(way, windows)
        if known is not None:
            return known
        way.some(x_CHW, target, windows, fill, score, at)  # the first run sets up more than the second
        started = time.perf_counter()
        way.some(x_CHW, target, windows, fill, score, at)
        return (time.perf_counter() - started) / (len(at) if way.kind == "batches" else len(windows))

    warning = "half precision is not to be had here" if half is None else ""
    if half is not None and (half_pace := pace(half)) >= (full_pace := pace(full)):
        warning = f"half precision is no faster here ({half_pace * 1e3:.1f} against {full_pace * 1e3:.1f} ms a window)"
    if half is None or warning:
        swept = sweeps.timed(full, x_CHW, target, windows, fill, score, on_windows)
        return HalfSwept(swept, full, 0.0, f"{warning}: the sweep ran in float32")
    swept = sweeps.timed(half, x_CHW, target, windows, fill, score, on_windows)
    expected = sweeps.reference.some(x_CHW, target, windows, fill, score, at)
    return HalfSwept(swept, half, _deviation(swept.reshape(-1)[at], expected))


def _deviation(half: Floats, full: Floats) -> float:
    return float(np.abs(half - full).max() / (np.abs(full).max() or 1.0))
