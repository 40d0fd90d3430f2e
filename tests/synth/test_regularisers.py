"""Regularisers against scipy, numpy and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from convlens.synth.regularisers import clip_small_contribution, clip_small_norm, gaussian_blur, total_variation

X = torch.randn(2, 3, 11, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GRAD = torch.randn(2, 3, 11, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.7])
def test_the_blur_is_scipy_s_gaussian(sigma: float) -> None:
    reach = max(1, round(4 * sigma))
    wanted = X.numpy()
    for axis in (2, 3):
        wanted = gaussian_filter1d(wanted, sigma, axis=axis, mode="nearest", radius=reach)
    np.testing.assert_allclose(gaussian_blur(X, sigma).numpy(), wanted, atol=1e-12)


def test_a_grey_picture_stays_grey_when_blurred() -> None:
    grey = torch.full((1, 3, 5, 5), 0.7)
    torch.testing.assert_close(gaussian_blur(grey, 1.0), grey)
    assert gaussian_blur(X, 0.0) is X


@pytest.mark.parametrize("percentile", [20.0, 50.0, 90.0])
def test_small_pixels_and_small_contributions_become_zero(percentile: float) -> None:
    norm_NHW = np.sqrt((X.numpy() ** 2).sum(1))
    part_NHW = np.abs((X * GRAD).numpy().sum(1))
    for found, size_NHW in (
        (clip_small_norm(X, percentile), norm_NHW),
        (clip_small_contribution(X, GRAD, percentile), part_NHW),
    ):
        for row, kept, size_HW in zip(X.numpy(), found.numpy(), size_NHW, strict=True):
            limit = np.sort(size_HW.ravel())[round(percentile / 100 * size_HW.size) - 1]
            np.testing.assert_array_equal(kept, row * (size_HW > limit))
            assert (kept == 0).all(0).mean() == pytest.approx(percentile / 100, abs=0.01)


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0, 3.0])
def test_total_variation_is_the_sum_over_pixels(beta: float) -> None:
    for row, found in zip(X.numpy(), total_variation(X, beta).tolist(), strict=True):
        total = 0.0
        channels, height, width = row.shape
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    across = row[c, i, j + 1] - row[c, i, j] if j + 1 < width else 0.0
                    down = row[c, i + 1, j] - row[c, i, j] if i + 1 < height else 0.0
                    total += (across**2 + down**2) ** (beta / 2)
        assert found == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0])
def test_its_gradient_is_finite_where_a_picture_is_flat(beta: float) -> None:
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[..., 2, 2] = 1.0
    x.requires_grad_()
    (grad,) = torch.autograd.grad(total_variation(x, beta).sum(), x)
    assert torch.isfinite(grad).all()
    assert grad[0, 0, 2, 2] > 0
    assert grad[0, 0, 0, 0] == 0
