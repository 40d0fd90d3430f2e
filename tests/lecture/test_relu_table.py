"""The table of worked numbers against the figure that the lecture takes it from."""

from __future__ import annotations

import numpy as np
import pytest

from convlens.lecture.relu_table import draw_relu_table, relu_table

# Springenberg et al. 2014 (arXiv:1412.6806), figure 1 b), and the lecture's slide.
FIGURE = {
    "plain": [[-2, 0, -1], [6, 0, 0], [0, -1, 3]],
    "deconvnet": [[0, 3, 0], [6, 0, 1], [2, 0, 3]],
    "guided": [[0, 0, 0], [6, 0, 0], [0, 0, 3]],
}


def test_the_forward_pass_is_that_of_the_figure() -> None:
    np.testing.assert_array_equal(relu_table().output_HW, [[1, 0, 5], [2, 0, 0], [0, 2, 4]])


@pytest.mark.parametrize("rule", FIGURE)
def test_each_rule_passes_the_numbers_of_the_figure(rule: str) -> None:
    np.testing.assert_array_equal(relu_table().passed[rule], FIGURE[rule])


def test_a_number_above_zero_is_drawn_red_and_one_below_blue() -> None:
    drawn_HWC = draw_relu_table(relu_table()).astype(int)
    red, _, blue = (drawn_HWC[:, :, n] for n in range(3))
    # The input begins with 1 and -1: the first two squares of 64 pixels, framed, behind a margin of 16.
    first, second = (slice(20, 30), slice(20, 30)), (slice(20, 30), slice(90, 100))
    assert (red[first] > blue[first]).all() and (blue[second] > red[second]).all()
