"""ROAD against a dense system written out pixel by pixel, small images solved by hand, and an additive network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from convlens.errors import ModelError, RequestError
from convlens.evaluation.relevance import pixel_order
from convlens.evaluation.road import impute, linear_imputation, road_curves, road_values

WEIGHTS_88 = np.zeros((8, 8))
WEIGHTS_88[2:5, 3:7] = np.arange(1, 13).reshape(3, 4)


def slow_imputation(image_CHW: Any, removed_HW: Any) -> Any:
    """Each removed pixel is the weighted mean of the neighbours that exist, as one dense system over all pixels."""
    channels, height, width = image_CHW.shape
    matrix, given = np.eye(height * width), image_CHW.reshape(channels, -1).T.copy()
    for y, x in zip(*np.nonzero(removed_HW), strict=True):
        weights = {}
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if (dy, dx) != (0, 0) and 0 <= y + dy < height and 0 <= x + dx < width:
                    weights[(y + dy) * width + x + dx] = 1 / 6 if dy == 0 or dx == 0 else 1 / 12
        for neighbour, weight in weights.items():
            matrix[y * width + x, neighbour] = -weight / sum(weights.values())
        given[y * width + x] = 0
    return np.linalg.solve(matrix, given).T.reshape(image_CHW.shape)


def additive(x_NCHW: torch.Tensor) -> Any:
    """Two logits: a weighted sum of the pixels, and 0."""
    score_N = x_NCHW.sum(1).numpy().astype(np.float64).reshape(len(x_NCHW), -1) @ WEIGHTS_88.reshape(-1) / 50
    return np.stack([score_N, np.zeros_like(score_N)], 1)


def bright_object() -> torch.Tensor:
    """Grey noise with a bright object where the additive network looks."""
    image_CHW = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)) / 10
    return image_CHW + torch.from_numpy(WEIGHTS_88 > 0).float()


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 11), (1, 9), (9, 1), (2, 2)])
def test_the_imputed_pixels_solve_the_dense_system(height: int, width: int, share: float) -> None:
    random = np.random.default_rng(height * width)
    image_CHW = random.normal(size=(3, height, width))
    removed_HW = random.permutation(height * width).reshape(height, width) < share * height * width
    removed_HW[-1, -1] = False
    expected = slow_imputation(image_CHW, removed_HW)
    np.testing.assert_allclose(linear_imputation(image_CHW, removed_HW), expected, rtol=0, atol=1e-11)


def test_a_corner_is_two_fifths_of_each_direct_neighbour_and_a_fifth_of_the_diagonal_one() -> None:
    image_CHW = np.array([[[99.0, 10.0], [20.0, 40.0]]])
    removed_HW = np.array([[True, False], [False, False]])
    np.testing.assert_allclose(linear_imputation(image_CHW, removed_HW)[0, 0, 0], (2 * 10 + 2 * 20 + 40) / 5)


def test_a_hole_in_a_ramp_is_filled_exactly() -> None:
    y_HW, x_HW = np.mgrid[:40, :50].astype(float)
    ramp_CHW = np.stack([3 * x_HW - y_HW, y_HW + 7, x_HW / 9])
    removed_HW = np.zeros((40, 50), bool)
    removed_HW[5:35, 2:48] = True
    holed_CHW = np.where(removed_HW, -1e3, ramp_CHW)
    np.testing.assert_allclose(linear_imputation(holed_CHW, removed_HW), ramp_CHW, rtol=0, atol=1e-10)


def test_one_pixel_that_is_left_gives_all_others_its_value() -> None:
    image_CHW = np.random.default_rng(0).normal(size=(3, 20, 20))
    removed_HW = np.ones((20, 20), bool)
    removed_HW[4, 15] = False
    imputed_CHW = linear_imputation(image_CHW, removed_HW)
    # a nearly singular system: the solution is 1e-12 of the pixel's value off per step to it
    np.testing.assert_allclose(imputed_CHW, np.broadcast_to(image_CHW[:, 4:5, 15:16], (3, 20, 20)), atol=1e-9)


def test_removing_nothing_changes_nothing() -> None:
    image_CHW = np.random.default_rng(0).normal(size=(3, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(impute(image_CHW, np.zeros((6, 6), bool)), image_CHW)


def test_noise_reaches_the_removed_pixels_only_and_has_the_deviation_asked_for() -> None:
    image_CHW = np.random.default_rng(0).normal(size=(3, 60, 60))
    removed_HW = np.random.default_rng(1).random((60, 60)) < 0.5
    noise_CHW = impute(image_CHW, removed_HW, noise=0.2) - linear_imputation(image_CHW, removed_HW)
    assert (noise_CHW[:, ~removed_HW] == 0).all()
    # about 5400 draws: the deviation's own standard error is a hundredth of it
    assert noise_CHW[:, removed_HW].std() == pytest.approx(0.2, rel=0.05)


def test_a_seed_gives_a_pixel_the_same_noise_whichever_others_are_removed() -> None:
    image_CHW = np.random.default_rng(0).normal(size=(3, 8, 8))
    few_HW, many_HW = np.random.default_rng(1).random((8, 8)) < 0.2, np.random.default_rng(1).random((8, 8)) < 0.6
    noise = [impute(image_CHW, mask, seed=4) - linear_imputation(image_CHW, mask) for mask in (few_HW, many_HW)]
    np.testing.assert_allclose(noise[1][:, few_HW], noise[0][:, few_HW], rtol=0, atol=1e-14)


def test_another_seed_gives_another_noise() -> None:
    image_CHW, removed_HW = np.zeros((3, 4, 4)), np.eye(4, dtype=bool)
    assert not np.array_equal(impute(image_CHW, removed_HW, seed=0), impute(image_CHW, removed_HW, seed=1))


def test_the_curves_are_the_probabilities_of_the_images_with_the_first_and_the_last_pixels_imputed() -> None:
    image_CHW, order = bright_object(), np.random.default_rng(0).permutation(64)
    curves = road_curves(additive, image_CHW, order, 0, fractions=(0.26, 0.5), noise=0.0)
    for name, pixels in (("morf", order), ("lerf", order[::-1])):
        for n, count in enumerate((16, 32)):  # 0.26 x 64 = 16.6
            removed_HW = np.isin(np.arange(64).reshape(8, 8), pixels[:count])
            score = (slow_imputation(image_CHW.numpy(), removed_HW).sum(0) * WEIGHTS_88).sum() / 50
            # the images are rounded to float32
            assert curves[name][n] == pytest.approx(1 / (1 + np.exp(-score)), abs=1e-6)


def test_the_true_order_of_an_additive_network_falls_faster_from_its_front_than_from_its_back() -> None:
    curves = road_curves(additive, bright_object(), pixel_order(WEIGHTS_88), 0)
    assert (curves["morf"] < curves["lerf"] - 0.05).all()


def test_pixels_without_weight_in_an_additive_network_are_removed_for_nothing() -> None:
    # 52 of the 64 weights are 0: more than seven tenths
    curves = road_curves(additive, bright_object(), pixel_order(WEIGHTS_88), 0, fractions=(0.1, 0.4, 0.7))
    whole = 1 / (1 + np.exp(-additive(bright_object()[None])[0, 0]))
    np.testing.assert_allclose(curves["lerf"], whole, rtol=1e-12)


def test_a_reversed_order_exchanges_the_curves() -> None:
    order = np.random.default_rng(0).permutation(64)
    curves = road_curves(additive, bright_object(), order, 0)
    reverse = road_curves(additive, bright_object(), order[::-1], 0)
    np.testing.assert_array_equal(curves["morf"], reverse["lerf"])
    np.testing.assert_array_equal(curves["lerf"], reverse["morf"])


def test_a_fraction_s_value_does_not_depend_on_the_other_fractions() -> None:
    order = np.random.default_rng(0).permutation(64)
    many = road_curves(additive, bright_object(), order, 0, fractions=(0.1, 0.4, 0.9))
    alone = road_curves(additive, bright_object(), order, 0, fractions=(0.4,))
    # a matrix product may add a row up differently in a larger batch
    np.testing.assert_allclose([many["morf"][1], many["lerf"][1]], [alone["morf"][0], alone["lerf"][0]], rtol=1e-12)


@pytest.mark.parametrize(("activation", "expected"), [("none", 0.5), ("sigmoid", 0.622459), ("softmax", 0.377541)])
def test_probabilities_are_by_the_model_s_activation(activation: Any, expected: float) -> None:
    curves = road_curves(
        lambda x_NCHW: np.tile([1.0, 0.5], (len(x_NCHW), 1)),
        np.zeros((1, 4, 4)),
        np.arange(16),
        1,
        activation=activation,
    )
    np.testing.assert_allclose(curves["morf"], expected, atol=1e-6)


def test_the_values_are_the_means_over_the_fractions() -> None:
    assert road_values({"morf": np.array([0.5, 0.25]), "lerf": np.array([1.0, 0.5])}) == {
        "road_morf": 0.375,
        "road_lerf": 0.75,
    }


def test_the_network_gets_the_image_s_own_precision() -> None:
    seen = []
    for dtype in (torch.float32, torch.float64):
        road_curves(
            lambda x_NCHW: (seen.append(x_NCHW.dtype), additive(x_NCHW))[1], bright_object().to(dtype), np.arange(64), 0
        )
    assert seen == [torch.float32, torch.float64]


def test_the_global_generators_are_left_alone() -> None:
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    road_curves(additive, bright_object(), np.arange(64), 0)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(RequestError, match="use 0 or more, and less than 1"):
        road_curves(additive, bright_object(), np.arange(64), 0, fractions=(0.5, fraction))


def test_no_fractions_are_refused() -> None:
    with pytest.raises(RequestError, match="give at least one"):
        road_curves(additive, bright_object(), np.arange(64), 0, fractions=())


@pytest.mark.parametrize("noise", [-1.0, float("inf"), float("nan")])
def test_noise_out_of_range_is_refused(noise: float) -> None:
    with pytest.raises(RequestError, match="use 0 or more"):
        road_curves(additive, bright_object(), np.arange(64), 0, noise=noise)


@pytest.mark.parametrize("order", [np.arange(63), np.zeros(64, int), np.arange(1, 65)])
def test_an_order_of_other_pixels_is_refused(order: Any) -> None:
    with pytest.raises(RequestError, match="each of the 64 pixels once"):
        road_curves(additive, bright_object(), order, 0)


def test_an_image_without_pixels_left_is_refused() -> None:
    with pytest.raises(RequestError, match="leave at least one"):
        linear_imputation(np.zeros((3, 4, 4)), np.ones((4, 4), bool))


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ModelError, match="NaN or infinite"):
        road_curves(lambda x_NCHW: np.full((len(x_NCHW), 2), np.nan), bright_object(), np.arange(64), 0)
