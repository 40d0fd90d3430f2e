from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch

from convlens.visualization import (
    abs_max,
    diverging,
    resize_map,
    resize_smoothly,
    scale,
    sequential,
    signed_sum,
    smoothed,
)

RESIZING = [resize_map, resize_smoothly]
OF_ONE_MAP = [
    sequential,
    diverging,
    scale,
    lambda m: smoothed(m, sigma=1),
    *(lambda m, resize=resize: resize(m, 9, 9) for resize in RESIZING),
]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def test_channels_are_reduced_by_hand_countable_rules():
    values_CHW = np.array([[[1.0, -5.0]], [[2.0, 4.0]], [[-3.0, 0.5]]])
    assert abs_max(values_CHW).tolist() == [[3.0, 5.0]]
    assert signed_sum(values_CHW).tolist() == [[0.0, -0.5]]


def test_scale_is_a_quantile_that_outliers_cannot_reach():
    values_HW = np.full((100, 100), -2.0)
    values_HW[0, :5] = 1e9  # 5 of 10000, less than a thousandth
    assert scale(values_HW) == 2.0
    assert scale(values_HW, quantile=1) == 1e9


def test_scale_of_a_very_sparse_map_is_its_maximum_and_of_nothing_is_one():
    values_HW = np.zeros((100, 100))
    assert scale(values_HW) == 1.0
    values_HW[3, 4] = -7
    assert scale(values_HW) == 7.0


@pytest.mark.parametrize("size", [(7, 7), (14, 3), (1, 1), (2, 9)])
@pytest.mark.parametrize("target", [(224, 224), (5, 31), (1, 1)])
def test_resizing_equals_torchs_bilinear(size, target):
    map_HW = noise(*size)
    expected = torch.nn.functional.interpolate(torch.from_numpy(map_HW)[None, None], target, mode="bilinear")[0, 0]
    np.testing.assert_allclose(resize_map(map_HW, *target), expected, atol=1e-12)  # float64 in both


@pytest.mark.parametrize("size", [(7, 7), (14, 3), (1, 1), (2, 9)])
@pytest.mark.parametrize("target", [(224, 224), (5, 31)])
def test_smooth_resizing_equals_scipys_cubic_spline_without_its_prefilter(size, target):
    map_HW = noise(*size)
    at = [(np.arange(pixels) + 0.5) * cells / pixels - 0.5 for pixels, cells in zip(target, size, strict=True)]
    grid = np.meshgrid(*at, indexing="ij")
    expected = scipy.ndimage.map_coordinates(map_HW, grid, order=3, prefilter=False, mode="nearest")
    np.testing.assert_allclose(resize_smoothly(map_HW, *target), expected, atol=1e-12)  # float64 in both


def test_smooth_resizing_gives_no_value_and_no_sign_that_no_cell_has():
    cells_HW = np.zeros((7, 7))
    cells_HW[3, 3] = 9
    drawn_HW = resize_smoothly(cells_HW, 63, 63)
    assert drawn_HW.min() == 0
    # The spline's weight of the cell itself is 2/3 along either side.
    np.testing.assert_allclose(drawn_HW.max(), 9 * 4 / 9, rtol=1e-12)


@pytest.mark.parametrize("sigma", [0.3, 1, 2.5])
def test_smoothing_equals_scipys_gaussian(sigma):
    map_HW = noise(20, 31)
    radius = int(np.ceil(3 * sigma))
    expected = scipy.ndimage.gaussian_filter(map_HW, sigma, mode="nearest", radius=radius)
    np.testing.assert_allclose(smoothed(map_HW, sigma=sigma), expected, atol=1e-12)


def test_no_smoothing_leaves_the_map_as_it_is():
    np.testing.assert_array_equal(smoothed(noise(4, 5), sigma=0), noise(4, 5))


def test_the_caller_s_arrays_are_not_written_to():
    map_HW = noise(6, 6)
    map_HW.flags.writeable = False
    for draw in OF_ONE_MAP:
        draw(map_HW)


@pytest.mark.parametrize("draw", OF_ONE_MAP)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((2, 3, 4)), "need HW"),
        (np.zeros(3), "need HW"),
        (np.zeros((0, 3)), "none of them 0"),
        (np.array([[np.nan, np.inf, 1]]), "2 values that are not finite"),
    ],
)
def test_wrong_maps_are_refused(draw, wrong, message):
    with pytest.raises(ValueError, match=message):
        draw(wrong)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="need CHW"):
        abs_max(np.zeros((2, 2)))
    for resize in RESIZING:
        with pytest.raises(ValueError, match="0 x 5"):
            resize(noise(2, 2), 0, 5)
    with pytest.raises(ValueError, match="sigma=-1"):
        smoothed(noise(2, 2), sigma=-1)
    for limit in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="limit="):
            sequential(noise(2, 2), limit=limit)
