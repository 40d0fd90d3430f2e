"""Histograms that grow with their values, and means by class."""

from __future__ import annotations

import numpy as np
import pytest

from convlens.atlas.statistics import ChannelHistograms, ClassMeans


def histograms(value_NC: np.ndarray, parts: int) -> ChannelHistograms:
    made = ChannelHistograms(value_NC.shape[1])
    for part_NC in np.array_split(value_NC, parts):
        made.add(part_NC)
    return made


@pytest.mark.parametrize("parts", [1, 3, 40])
def test_a_histogram_is_numpy_s_over_its_own_bins_however_the_values_come(parts: int) -> None:
    chance = np.random.default_rng(0)
    value_NC = np.stack([chance.normal(0, 3, 40), chance.gamma(1.0, 1e-3, 40), chance.normal(5e4, 1, 40)], 1)
    found = histograms(value_NC.astype(np.float32), parts)
    for channel, values in enumerate(value_NC.astype(np.float32).T):
        start, width, counts = found.bars(channel)
        edges = start + width * np.arange(len(counts) + 1)
        assert counts == np.histogram(values.astype(np.float64), edges)[0].tolist()
        assert sum(counts) == 40
        assert 12 <= len(counts) <= 32


def test_bins_are_a_power_of_two_wide_and_begin_at_a_multiple_of_it() -> None:
    # 0, 1, ..., 31 fit into 32 bins of width 1; one value more needs a width of 2.
    found = histograms(np.arange(32.0)[:, None], 4)
    assert found.bars(0) == (0.0, 1.0, [1] * 32)
    found.add(np.array([[32.0]]))
    assert found.bars(0) == (0.0, 2.0, [2] * 16 + [1])


def test_a_channel_of_one_value_has_one_bar() -> None:
    _, _, counts = histograms(np.zeros((7, 1)), 2).bars(0)
    assert counts == [7]


def test_a_histogram_goes_on_from_its_state() -> None:
    value_NC = np.random.default_rng(0).normal(0, 1, (20, 2))
    begun, resumed = histograms(value_NC[:11], 2), ChannelHistograms(2)
    resumed.load_state_dict(begun.state_dict())
    resumed.add(value_NC[11:])
    assert [resumed.bars(n) for n in range(2)] == [histograms(value_NC, 1).bars(n) for n in range(2)]


def test_means_are_by_class_and_the_largest_come_first() -> None:
    means = ClassMeans(2)
    for index, mean_C in [(4, [1.0, 0.0]), (2, [5.0, 1.0]), (4, [3.0, 4.0])]:
        means.add(index, np.array(mean_C))
    assert means.best(0, 9) == [(2, 5.0, 1), (4, 2.0, 2)]
    assert means.best(1, 1) == [(4, 2.0, 2)]
