"""Infidelity and max-sensitivity of linear and quadratic networks, whose answers numpy gives in a few lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from convlens.errors import ModelError, RequestError
from convlens.evaluation.captum_metrics import (
    ScoreChanges,
    infidelity,
    max_sensitivity,
    score_changes,
)

WEIGHTS = torch.randn(3, 9, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGE = torch.randn(3, 9, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
KINDS = ["squares", "noise"]


def linear(x_NCHW: torch.Tensor) -> Any:
    """Two logits: the negative of the weighted sum, and the weighted sum with an offset."""
    score_N = (x_NCHW * WEIGHTS).sum((1, 2, 3)).numpy()
    return np.stack([-score_N, score_N + 5], 1)


def quadratic(x_NCHW: torch.Tensor) -> Any:
    return linear(x_NCHW) ** 2


def least_squares_error(changes: ScoreChanges, values_CHW: Any) -> float:
    """The residual of a straight line through the origin, by numpy's own solver."""
    predicted_S = (changes.perturbation_SCHW.astype(np.float64) * values_CHW).sum((1, 2, 3))
    beta = np.linalg.lstsq(predicted_S[:, None], changes.change_S, rcond=None)[0]
    return float(np.mean((predicted_S * beta - changes.change_S) ** 2))


# ---- what the score changes by


@pytest.mark.parametrize("samples", [1, 10, 23])
def test_noise_changes_the_score_by_as_much_as_the_perturbed_image_s_score_is_less(samples: int) -> None:
    changes = score_changes(linear, IMAGE, 1, perturbation="noise", sigma=0.3, samples=samples)
    assert changes.perturbation_SCHW.shape == (samples, 3, 9, 7)
    # of a linear network the change is the noise, weighted
    expected = (changes.perturbation_SCHW * WEIGHTS.numpy()).sum((1, 2, 3))
    np.testing.assert_allclose(changes.change_S, expected, atol=1e-9)


def test_noise_has_the_deviation_asked_for() -> None:
    changes = score_changes(linear, IMAGE, 1, perturbation="noise", sigma=0.3, samples=50)
    # 9450 draws: the standard error of their deviation is under 1 %
    assert changes.perturbation_SCHW.std() == pytest.approx(0.3, rel=0.03)


def test_a_square_changes_the_score_by_what_its_pixels_hold() -> None:
    changes = score_changes(linear, IMAGE, 1, samples=40)
    expected = (changes.perturbation_SCHW * (WEIGHTS * IMAGE).numpy()).sum((1, 2, 3))
    np.testing.assert_allclose(changes.change_S, expected, atol=1e-9)


def test_squares_are_of_all_sides_and_reach_all_pixels() -> None:
    image_CHW = torch.zeros(1, 56, 84)
    changes = score_changes(lambda x_NCHW: np.zeros((len(x_NCHW), 1)), image_CHW, 0, samples=400)
    masks_SHW = changes.perturbation_SCHW[:, 0]
    sides = set()
    for mask_HW in masks_SHW:
        rows, columns = mask_HW.any(1).sum(), mask_HW.any(0).sum()
        assert rows == columns and mask_HW.sum() == rows * columns
        sides.add(int(rows))
    assert sides == {2, 4, 6, 8, 10, 12, 14, 16, 18, 20}
    reached_HW = masks_SHW.any(0)
    assert all(edge.any() for edge in (reached_HW[0], reached_HW[-1], reached_HW[:, 0], reached_HW[:, -1]))
    assert reached_HW[10:-10, 10:-10].all()


@pytest.mark.parametrize("perturbation", KINDS)
def test_one_seed_gives_one_answer_and_another_seed_another(perturbation: Any) -> None:
    first, same, other = (
        score_changes(quadratic, IMAGE, 0, perturbation=perturbation, seed=seed, samples=12) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.perturbation_SCHW, same.perturbation_SCHW)
    np.testing.assert_array_equal(first.change_S, same.change_S)
    assert not np.array_equal(first.perturbation_SCHW, other.perturbation_SCHW)


def test_the_image_is_left_as_it_is() -> None:
    before = IMAGE.clone()
    score_changes(linear, IMAGE, 0)
    assert torch.equal(IMAGE, before)


# ---- infidelity


def test_the_weights_of_a_linear_network_tell_what_noise_does() -> None:
    changes = score_changes(linear, IMAGE, 1, perturbation="noise")
    # the three terms of the expanded square are about 5 each and known to 16 digits
    assert infidelity(changes, WEIGHTS.numpy()) == pytest.approx(0, abs=1e-12)


def test_the_input_times_the_weights_of_a_linear_network_tells_what_a_square_holds() -> None:
    changes = score_changes(linear, IMAGE, 1)
    assert infidelity(changes, (WEIGHTS * IMAGE).sum(0, keepdim=True).numpy()) == pytest.approx(0, abs=1e-11)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("samples", [1, 7, 10, 41])
@pytest.mark.parametrize("perturbation", KINDS)
def test_any_other_map_has_the_error_of_its_best_straight_line(perturbation: Any, samples: int, channels: int) -> None:
    changes = score_changes(quadratic, IMAGE, 1, perturbation=perturbation, samples=samples)
    values_CHW = np.random.default_rng(0).normal(size=(channels, 9, 7))
    expected = least_squares_error(changes, values_CHW)
    np.testing.assert_allclose(infidelity(changes, values_CHW), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("perturbation", KINDS)
def test_neither_size_nor_sign_of_a_map_matters(perturbation: Any) -> None:
    changes = score_changes(quadratic, IMAGE, 1, perturbation=perturbation)
    values_CHW = np.random.default_rng(0).normal(size=(3, 9, 7))
    assert infidelity(changes, -1e4 * values_CHW) == pytest.approx(infidelity(changes, values_CHW), rel=1e-9)


@pytest.mark.parametrize("perturbation", KINDS)
def test_a_map_of_zeros_misses_all_of_the_change(perturbation: Any) -> None:
    changes = score_changes(quadratic, IMAGE, 1, perturbation=perturbation)
    assert infidelity(changes, np.zeros((3, 9, 7))) == pytest.approx(np.mean(changes.change_S**2), rel=1e-12)


def test_measuring_one_map_leaves_the_next_as_it_would_be_alone() -> None:
    changes = score_changes(quadratic, IMAGE, 1)
    first, second = np.random.default_rng(0).normal(size=(2, 3, 9, 7))
    alone = infidelity(changes, second)
    infidelity(changes, first)
    assert infidelity(changes, second) == alone


@pytest.mark.parametrize("shape", [(2, 9, 7), (3, 7, 9), (9, 7), (1, 1, 1)])
def test_a_map_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="does not fit"):
        infidelity(score_changes(linear, IMAGE, 1, perturbation="noise", samples=2), np.zeros(shape))


# ---- max-sensitivity


def test_a_map_that_never_changes_has_sensitivity_0() -> None:
    assert max_sensitivity(lambda x_NCHW: np.ones((len(x_NCHW), 1, 9, 7)), IMAGE) == 0


def test_a_map_of_zeros_that_never_changes_has_sensitivity_0() -> None:
    assert max_sensitivity(lambda x_NCHW: np.zeros((len(x_NCHW), 1, 9, 7)), IMAGE) == 0


@pytest.mark.parametrize("samples", [1, 10])
def test_a_map_that_is_linear_in_the_image_changes_by_the_map_of_the_noise(samples: int) -> None:
    copies = []

    def explanation_of(x_NCHW: torch.Tensor) -> Any:
        copies.append(x_NCHW.numpy())
        return (x_NCHW * WEIGHTS).numpy()

    result = max_sensitivity(explanation_of, IMAGE, radius=0.02, samples=samples)
    assert [len(x_NCHW) for x_NCHW in copies] == [1, samples]
    noise_SCHW = copies[1] - IMAGE.numpy()
    assert np.abs(noise_SCHW).max() <= 0.02
    change_S = np.sqrt(((noise_SCHW * WEIGHTS.numpy()) ** 2).sum((1, 2, 3)))
    assert result == pytest.approx(change_S.max() / np.linalg.norm(IMAGE * WEIGHTS), rel=1e-12)


def test_the_noise_fills_the_whole_radius() -> None:
    copies = []
    max_sensitivity(lambda x_NCHW: copies.append(x_NCHW.numpy()) or np.ones((len(x_NCHW), 1, 1, 1)), IMAGE, radius=0.5)
    noise = copies[1] - IMAGE.numpy()
    # 1890 even draws in ±0.5
    assert noise.min() < -0.49 and noise.max() > 0.49 and noise.std() == pytest.approx(0.5 / np.sqrt(3), rel=0.05)


def test_maps_may_be_gradients() -> None:
    def explanation_of(x_NCHW: torch.Tensor) -> Any:
        x_NCHW = x_NCHW.detach().requires_grad_()
        return torch.autograd.grad((x_NCHW**2).sum(), x_NCHW)[0].numpy()

    # the gradient is 2x, so its relative change is that of the image
    doubled = max_sensitivity(lambda x_NCHW: x_NCHW.numpy(), IMAGE)
    assert max_sensitivity(explanation_of, IMAGE) == pytest.approx(doubled, rel=1e-12)


def test_one_seed_gives_one_sensitivity_and_another_seed_another() -> None:
    first, same, other = (max_sensitivity(lambda x: x.numpy(), IMAGE, seed=seed) for seed in (3, 3, 4))
    assert first == same != other


# ---- both


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    infidelity(score_changes(linear, IMAGE, 0, perturbation="noise", samples=3), WEIGHTS.numpy())
    score_changes(linear, IMAGE, 0, samples=3)
    max_sensitivity(lambda x_NCHW: x_NCHW.numpy(), IMAGE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("option", [{"sigma": 0.0}, {"sigma": float("nan")}, {"samples": 0}])
def test_noise_that_cannot_be_drawn_is_refused(option: Any) -> None:
    with pytest.raises(RequestError, match="use more than 0"):
        score_changes(linear, IMAGE, 0, **option)


@pytest.mark.parametrize("option", [{"radius": -1.0}, {"radius": float("inf")}, {"samples": 0}])
def test_a_ball_that_cannot_be_drawn_from_is_refused(option: Any) -> None:
    with pytest.raises(RequestError, match="use more than 0"):
        max_sensitivity(lambda x_NCHW: x_NCHW.numpy(), IMAGE, **option)


def test_an_unknown_perturbation_is_refused_with_those_there_are() -> None:
    with pytest.raises(RequestError, match="did you mean squares"):
        score_changes(linear, IMAGE, 0, perturbation="square")  # type: ignore[arg-type]


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ModelError, match="NaN or infinite"):
        score_changes(lambda x_NCHW: np.full((len(x_NCHW), 2), np.nan), IMAGE, 0)
