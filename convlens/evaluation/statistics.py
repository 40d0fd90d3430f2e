"""Bootstrap confidence intervals over images: of means, and of paired differences between two methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, stdtrit

from convlens.types import Floats, Ints

LEVEL = 0.95
RESAMPLES = 9999
FEW = 8
"""Fewer images than these support no recommendation: intervals of so few are rough."""
_COLUMNS_AT_ONCE = 1024  # of 9999 means each: 80 MB
_DRAWS_AT_ONCE = 4_000_000  # 32 MB


@dataclass(frozen=True)
class MeanIntervals:
    """Means over the measured rows of K columns, and the ends of their intervals.

    ``mean_K`` is NaN where nothing was measured, ``low_K`` and ``high_K`` are where fewer than two rows were.
    """

    mean_K: Floats
    low_K: Floats
    high_K: Floats
    n_K: Ints

    def estimate(self, column: int) -> dict[str, Any]:
        """One column for JSON: ``mean``, ``low``, ``high`` (None instead of NaN) and ``n``."""
        mean, low, high = (_number(ends[column]) for ends in (self.mean_K, self.low_K, self.high_K))
        return {"mean": mean, "low": low, "high": high, "n": int(self.n_K[column])}

    def series(self, columns: slice) -> dict[str, Any]:
        """Neighbouring columns for JSON, lists of numbers or None; ``low`` and ``high`` are None without intervals."""
        mean, low, high = ([_number(end) for end in ends[columns]] for ends in (self.mean_K, self.low_K, self.high_K))
        no_interval = all(end is None for end in low)
        return {"mean": mean, "low": None if no_interval else low, "high": None if no_interval else high}


def mean_intervals(values_NK: Floats, *, seed: int = 0, level: float = LEVEL) -> MeanIntervals:
    """Mean of each column and its bootstrap interval over the rows (Efron & Tibshirani 1993, percentile method).

    NaN means not measured and is left out. Columns measured on the same rows share their resamples. The percentiles
    are widened as Hesterberg proposes (2015, arXiv:1411.5279, "expanded percentile"): plain ones are too narrow by
    √((n − 1)/n) and by the normal's for Student's quantile, and those of 8 normal values held the mean in 89 % of 4000
    trials instead of 95 % (these: 95 %). Equal rows give an interval of width 0.

    Not ``scipy.stats.bootstrap``, which copies every column for every resample: for 12 metrics of 20 methods on 200
    images it took 9 times as long as counting how often each row is drawn and multiplying. The results are equal.
    """
    values = np.asarray(values_NK, dtype=np.float64)
    measured_NK = np.isfinite(values)
    n_K = measured_NK.sum(axis=0)
    mean_K, low_K, high_K = (np.full(values.shape[1], np.nan) for _ in range(3))
    patterns, pattern_of_K = np.unique(measured_NK, axis=1, return_inverse=True)
    for index in range(patterns.shape[1]):
        columns = np.flatnonzero(pattern_of_K.reshape(-1) == index)
        sample = values[patterns[:, index]][:, columns]
        if len(sample) >= 1:
            # Distances from the first row: equal rows keep their exact value, whatever the rounding of a sum.
            mean_K[columns] = sample[0] + (sample - sample[0]).mean(axis=0)
        if len(sample) >= 2:
            low_K[columns], high_K[columns] = _ends(sample, seed, level)
    return MeanIntervals(mean_K, low_K, high_K, n_K)


def paired_differences(values_NK: Floats, others_NK: Floats, *, seed: int = 0, level: float = LEVEL) -> MeanIntervals:
    """As ``mean_intervals``, of values − others on the rows that have both."""
    return mean_intervals(np.asarray(values_NK) - np.asarray(others_NK), seed=seed, level=level)


def tail(n: int, level: float = LEVEL) -> float:
    """The share of resampled means beyond each end of an expanded percentile interval of ``n`` rows."""
    student = float(stdtrit(n - 1, (1 - level) / 2))
    return float(ndtr(math.sqrt(n / (n - 1)) * student))


def as_columns(rows: Sequence[Sequence[float | None] | None], width: int) -> Floats:
    """Rows of a JSON record as (N, width) floats; None, for a number or for a whole row, becomes NaN."""
    return np.array([row if row is not None else [None] * width for row in rows], dtype=np.float64).reshape(-1, width)


def _ends(sample_NK: Floats, seed: int, level: float) -> tuple[Floats, Floats]:
    share = tail(len(sample_NK), level)
    shift_NK = sample_NK - sample_NK[0]
    ends = []
    for start in range(0, sample_NK.shape[1], _COLUMNS_AT_ONCE):
        means_KB = _resampled_means(shift_NK[:, start : start + _COLUMNS_AT_ONCE], seed)
        ends.append(np.quantile(means_KB, [share, 1 - share], axis=1, overwrite_input=True))
    low_K, high_K = np.concatenate(ends, axis=1) + sample_NK[0]
    return low_K, high_K


def _resampled_means(values_NK: Floats, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    n = len(values_NK)
    at_once = max(1, _DRAWS_AT_ONCE // n)
    parts = []
    for start in range(0, RESAMPLES, at_once):
        resamples = min(at_once, RESAMPLES - start)
        drawn_BN = rng.integers(0, n, (resamples, n))
        times_NB = np.bincount(
            (drawn_BN * resamples + np.arange(resamples)[:, None]).reshape(-1), minlength=n * resamples
        )
        parts.append(values_NK.T @ times_NB.reshape(n, resamples).astype(np.float64) / n)
    return np.concatenate(parts, axis=1)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
