"""The Gini index against values by hand and its definition over pairs."""

from __future__ import annotations

import numpy as np
import pytest

from convlens.evaluation.relevance import sparseness


def test_equal_pixels_have_sparseness_0() -> None:
    assert sparseness(np.full((5, 7), 0.3)) == pytest.approx(0, abs=1e-12)


def test_one_pixel_alone_comes_as_near_to_1_as_there_are_pixels() -> None:
    map_HW = np.zeros((5, 8))
    map_HW[2, 3] = 9
    assert sparseness(map_HW) == pytest.approx(1 - 1 / 40)


def test_a_map_of_zeros_has_sparseness_0() -> None:
    assert sparseness(np.zeros((4, 4))) == 0


@pytest.mark.parametrize(("values", "expected"), [([1, 3], 1 / 4), ([0, 0, 1, 1], 1 / 2), ([4, 1, 3, 2], 1 / 4)])
def test_small_maps_have_the_index_by_hand(values: list[float], expected: float) -> None:
    assert sparseness(np.array([values], np.float32)) == pytest.approx(expected)


def test_the_index_is_the_mean_difference_of_all_pairs_over_twice_the_mean() -> None:
    map_HW = np.abs(np.random.default_rng(0).normal(size=(9, 6)))
    pairs = np.abs(map_HW.reshape(-1, 1) - map_HW.reshape(1, -1))
    assert sparseness(map_HW) == pytest.approx(pairs.mean() / (2 * map_HW.mean()), rel=1e-12)


def test_neither_sign_nor_size_matters() -> None:
    map_HW = np.random.default_rng(0).normal(size=(9, 6))
    assert sparseness(-3 * np.abs(map_HW)) == pytest.approx(sparseness(map_HW), rel=1e-12)
