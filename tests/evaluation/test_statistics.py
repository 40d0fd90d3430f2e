"""Bootstrap intervals: closed forms, scipy's bootstrap on the same resamples, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from convlens.evaluation.statistics import as_columns, mean_intervals, paired_differences, tail


def normal(n: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, columns))


def width(intervals: object, column: int = 0) -> float:
    return float(intervals.high_K[column] - intervals.low_K[column])  # type: ignore[attr-defined]


@pytest.mark.parametrize("n", [6, 200])
def test_the_interval_equals_scipys_bootstrap_of_the_same_resamples(n: int) -> None:
    values = np.random.default_rng(3).exponential(size=(n, 3))
    student = stats.t.ppf(0.025, n - 1) * math.sqrt(n / (n - 1))
    expanded = 1 - 2 * stats.norm.cdf(student)
    expected = stats.bootstrap(
        (values,),
        np.mean,
        axis=0,
        n_resamples=9999,
        confidence_level=expanded,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    result = mean_intervals(values, seed=7)
    np.testing.assert_allclose(result.low_K, expected.low, rtol=1e-12)
    np.testing.assert_allclose(result.high_K, expected.high, rtol=1e-12)


def test_the_interval_of_many_symmetric_values_approaches_that_of_the_normal() -> None:
    values = normal(1000, 1)
    half = 1.96 * values.std(ddof=1) / math.sqrt(1000)
    result = mean_intervals(values)
    # 9999 resamples leave about 2 % of the half width to chance.
    assert result.low_K[0] == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert result.high_K[0] == pytest.approx(values.mean() + half, abs=0.05 * half)


@pytest.mark.parametrize("n", [8, 20, 100])
def test_about_95_of_100_intervals_hold_the_true_mean(n: int) -> None:
    result = mean_intervals(normal(n, 3000) + 0.4)
    held = np.mean((result.low_K <= 0.4) & (result.high_K >= 0.4))
    assert held == pytest.approx(0.95, abs=0.015)  # the standard error of 3000 trials is .004


def test_paired_differences_are_narrower_than_the_means_they_are_of() -> None:
    of_image, noise = normal(100, 1), 0.1 * normal(100, 2, seed=1)
    first, second = of_image + noise[:, :1], of_image + noise[:, 1:] + 0.05
    paired = paired_differences(first, second)
    assert width(paired) < 0.25 * width(mean_intervals(first))
    assert paired.mean_K[0] == pytest.approx(first.mean() - second.mean())
    assert paired.high_K[0] < 0  # which the intervals of the means, each ten times as wide as the shift, do not show


def test_paired_differences_leave_out_images_that_one_of_the_two_lacks() -> None:
    result = paired_differences(np.array([[5.0], [math.nan], [2.0]]), np.array([[1.0], [1.0], [math.nan]]))
    assert result.estimate(0) == {"mean": 4.0, "low": None, "high": None, "n": 1}


def test_one_value_has_no_interval() -> None:
    assert mean_intervals(np.array([[0.3]])).estimate(0) == {"mean": 0.3, "low": None, "high": None, "n": 1}


@pytest.mark.parametrize("values", [np.empty((0, 2)), np.full((3, 2), math.nan)])
def test_nothing_measured_has_no_mean(values: np.ndarray) -> None:
    assert mean_intervals(values).estimate(1) == {"mean": None, "low": None, "high": None, "n": 0}


@pytest.mark.parametrize("value", [0.1, 1 / 3, -7.3e-9, 0.0])
def test_equal_values_have_an_interval_of_width_0(value: float) -> None:
    assert mean_intervals(np.full((7, 1), value)).estimate(0) == {"mean": value, "low": value, "high": value, "n": 7}


def test_missing_values_are_left_out_of_their_own_column_only() -> None:
    values = normal(30, 3)
    values[10:, 1] = math.nan
    result = mean_intervals(values)
    alone = mean_intervals(values[:10, 1:2])
    assert result.n_K.tolist() == [30, 10, 30]
    assert result.estimate(1) == alone.estimate(0)


def test_a_seed_gives_the_same_interval_again_and_another_seed_another() -> None:
    values = normal(40, 1)
    first, again, other = (mean_intervals(values, seed=seed) for seed in (1, 1, 2))
    assert first.estimate(0) == again.estimate(0) != other.estimate(0)


def test_columns_beyond_those_resampled_at_once_are_what_they_are_alone() -> None:
    values = normal(9, 1100)
    np.testing.assert_allclose(mean_intervals(values).low_K[1090:], mean_intervals(values[:, 1090:]).low_K, rtol=1e-12)


def test_resamples_drawn_in_parts_are_as_good_as_those_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = normal(50, 4)
    whole = mean_intervals(values)
    monkeypatch.setattr("convlens.evaluation.statistics._DRAWS_AT_ONCE", 50 * 999)
    np.testing.assert_allclose(mean_intervals(values).low_K, whole.low_K, rtol=1e-12)


def test_the_tails_of_many_rows_are_those_of_the_level() -> None:
    assert tail(10**6) == pytest.approx(0.025, rel=1e-4)
    assert tail(5) < 0.001


def test_a_series_tells_its_intervals_point_by_point() -> None:
    rows = as_columns([[1.0, None], [3.0, None], None], 2)
    series = mean_intervals(rows).series(slice(0, 2))
    assert series["mean"] == [2.0, None]
    assert series["low"][1] is None
    assert series["low"][0] == 1.0  # of two values every interval reaches from one to the other


def test_a_series_of_one_image_has_no_intervals() -> None:
    assert mean_intervals(as_columns([[0.5, 0.25]], 2)).series(slice(0, 2)) == {
        "mean": [0.5, 0.25],
        "low": None,
        "high": None,
    }
