"""Sweeps in half precision: where that is faster, and with the deviation it costs."""

from __future__ import annotations

import copy
import functools
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from convlens.explain.sweeps import Sweeps
from convlens.explain.ways import OnWindows, Way
from convlens.explain.windows import Windows
from convlens.types import Floats, ScoreKind

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
    way: Way
    deviation: float
    warning: str = ""


def half_sweep(
    sweeps: Sweeps,
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

    def pace(way: Way) -> float:
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
