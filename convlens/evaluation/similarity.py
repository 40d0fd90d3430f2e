"""How alike two maps are: by the order of their pixels, and by their local structure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convlens.types import Floats
from convlens.visualization import smoothed

_SIGMA = 1.5  # of the window's Gaussian, in pixels, and the constants K1 and K2: Wang et al. 2004, section III.C
_K1, _K2 = 0.01, 0.03
SSIM_WINDOW = 11
"""Side of the window in pixels: maps for ``ssim`` have at least that many a side."""


def spearman(one: Floats, other: Floats) -> float | None:
    """Spearman's rank correlation of two arrays of equal shape, -1..1; equal values share their mean rank.

    None where all values of one of them are equal: there is no order to compare. ValueError for other shapes, and for
    values that are not finite.
    """
    a, b = (_centred_ranks(each) for each in _same_shape(one, other))
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread else None


def ssim(one_HW: Floats, other_HW: Floats, *, data_range: float) -> float:
    """Mean structural similarity, 1 for equal maps (Wang et al. 2004, doi:10.1109/TIP.2003.819861).

    The window is their Gaussian, 11 × 11 with sigma 1.5, and only windows that lie in the map count: what
    scikit-image gives for ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``. ``data_range`` is the
    distance from the least possible value to the largest. ValueError for maps with fewer than 11 pixels a side.
    """
    a, b = _same_shape(one_HW, other_HW)
    if a.ndim != 2 or min(a.shape) < SSIM_WINDOW:
        raise ValueError(f"ssim compares maps of {SSIM_WINDOW} × {SSIM_WINDOW} pixels or more, not of {a.shape}")
    mean_a, mean_b = _windowed(a), _windowed(b)
    variance_a, variance_b = _windowed(a * a) - mean_a**2, _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float((luminance * structure).mean())


def _same_shape(one: Floats, other: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"an array of {a.shape} cannot be compared with one of {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("arrays to compare must be finite")
    return a, b


def _centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks about their mean. Half integers and their products are exact: of equal orders the correlation is 1."""
    # Not scipy.stats, whose import takes 0.8 s.
    _, group, count = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    return np.asarray(mean_rank[group] - (values.size + 1) / 2)


def _windowed(values_HW: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Gaussian mean over each window that lies in the map."""
    edge = SSIM_WINDOW // 2
    return smoothed(values_HW, sigma=_SIGMA)[edge:-edge, edge:-edge]
