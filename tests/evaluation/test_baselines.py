"""Maps that know nothing of the network, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from convlens.evaluation.baselines import baseline_map


@pytest.mark.parametrize("name", ["random pixels", "random blobs"])
def test_a_random_baseline_is_the_image_s_own(name: str) -> None:
    x_CHW = np.zeros((3, 32, 32), np.float32)
    first = baseline_map(name, x_CHW, id="a.png", seed=0)
    assert np.array_equal(first, baseline_map(name, x_CHW, id="a.png", seed=0))
    for other in (baseline_map(name, x_CHW, id="b.png", seed=0), baseline_map(name, x_CHW, id="a.png", seed=1)):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.5


def test_the_centre_is_most_relevant_in_the_middle() -> None:
    map_HW = baseline_map("centre", np.zeros((3, 5, 7), np.float32), id="", seed=0)
    assert np.unravel_index(map_HW.argmax(), map_HW.shape) == (2, 3)
    assert map_HW[0, 0] == map_HW[4, 6] == map_HW.min()


def test_edges_are_sobel_s_gradient_of_the_channels_mean() -> None:
    ramp_CHW = np.broadcast_to(np.arange(6.0), (3, 5, 6)) * np.array([1.0, 2.0, 3.0])[:, None, None]
    map_HW = baseline_map("edges", ramp_CHW, id="", seed=0)
    # The mean rises by 2 a pixel: 2 * 2 over both sides, times the kernel's 1 + 2 + 1; half of it at the border.
    assert map_HW[2].tolist() == [8.0, 16.0, 16.0, 16.0, 16.0, 8.0]
