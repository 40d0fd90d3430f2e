"""Rank correlation against SciPy, structural similarity against scikit-image, and both by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.data
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from convlens.evaluation.similarity import spearman, ssim


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# ---- rank correlation


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_rank_correlation_is_scipys_with_few_and_many_ties(seed: int, levels: int) -> None:
    a, b = np.random.default_rng(seed).integers(0, levels, (2, 9, 11))
    b = a + b  # related, so that the correlation is not near 0
    found = spearman(a, b)
    assert found == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-12)


def test_ties_share_their_mean_rank() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4, about their mean: -1.5, 0, 0, 1.5 and -1.5, -.5, .5, 1.5.
    found = spearman(np.array([1.0, 7.0, 7.0, 8.0]), np.array([0.0, 1.0, 5.0, 6.0]))
    assert found == pytest.approx(4.5 / math.sqrt(4.5 * 5.0))


def test_the_same_order_correlates_by_exactly_one_whatever_the_values() -> None:
    a = noise(0, 224, 224)
    assert spearman(a, np.exp(a)) == 1.0
    assert spearman(a, -a) == -1.0


@pytest.mark.parametrize("seed", range(5))
def test_independent_values_correlate_by_no_more_than_chance(seed: int) -> None:
    # The standard deviation of the correlation of independent orders of n values is 1/√(n − 1).
    assert abs(spearman(noise(seed, 64, 64), noise(seed + 100, 64, 64)) or 0) < 4 / 64


def test_a_constant_has_no_order_to_compare() -> None:
    assert spearman(np.zeros((4, 4)), noise(0, 4, 4)) is None
    assert spearman(noise(0, 4, 4), np.full((4, 4), 2.0)) is None


@pytest.mark.parametrize("wrong", [noise(1, 4, 5), np.full((4, 4), np.nan)])
def test_what_cannot_be_compared_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"cannot be compared|finite"):
        spearman(noise(0, 4, 4), wrong)


# ---- structural similarity


@pytest.mark.parametrize("data_range", [1.0, 2.0])
@pytest.mark.parametrize("amount", [0.02, 0.5])
def test_structural_similarity_is_scikit_images(data_range: float, amount: float) -> None:
    a = skimage.data.camera()[100:223, 100:260] / 255.0 * data_range - (data_range - 1)
    b = np.clip(a + amount * noise(0, *a.shape), a.min(), a.max())
    wanted = structural_similarity(
        a, b, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(a, b, data_range=data_range) == pytest.approx(wanted, abs=1e-12)


def test_of_equal_maps_it_is_one() -> None:
    a = noise(0, 20, 30)
    assert ssim(a, a, data_range=1.0) == pytest.approx(1.0, abs=1e-12)


def test_of_flat_maps_only_their_brightness_counts() -> None:
    # Wang et al. 2004, equation 6, with C1 = (0.01 · 1)².
    found = ssim(np.full((11, 11), 0.25), np.full((11, 11), 0.75), data_range=1.0)
    assert found == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4))


def test_of_a_chessboard_and_its_negative_it_is_nearly_minus_one() -> None:
    board = np.indices((40, 40)).sum(0) % 2 * 2.0 - 1.0
    # Equation 13: variances are 1, the covariance -1 and means about 0; C2 = (0.03 · 2)².
    assert ssim(board, -board, data_range=2.0) == pytest.approx((-2 + 0.0036) / (2 + 0.0036), abs=1e-3)


def test_maps_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="11 × 11"):
        ssim(noise(0, 10, 30), noise(1, 10, 30), data_range=1.0)
