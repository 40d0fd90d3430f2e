"""How wide a unit really sees, on gradients that can be added up."""

from __future__ import annotations

import numpy as np

from convlens.atlas.effective_field import effective_box, effective_side


def gradient(*pixels: tuple[int, int, float], side: int = 12) -> np.ndarray:
    grad_CHW = np.zeros((3, side, side), np.float32)
    for y, x, value in pixels:
        grad_CHW[0, y, x] = value
    return grad_CHW


def test_the_side_holds_95_percent_of_the_squared_gradient_around_the_middle_of_the_field() -> None:
    box = (2, 2, 11, 11)  # 9 pixels, whose middle is pixel 6
    # Squared: 94 in the middle, 2 two pixels off, 4 four pixels off.
    uneven = gradient((6, 6, 94**0.5), (6, 8, 2**0.5), (2, 6, 2.0))
    assert effective_side([uneven], [box]) == 5
    assert effective_side([gradient((6, 6, 96**0.5), (2, 6, 2.0))], [box]) == 1


def test_of_a_field_of_even_length_the_side_is_even() -> None:
    box = (2, 2, 10, 10)  # 8 pixels, whose middle lies between pixels 5 and 6
    assert effective_side([gradient((5, 5, 1.0), (6, 6, 1.0))], [box]) == 2
    assert effective_side([gradient((3, 5, 1.0))], [box]) == 6


def test_units_count_alike_and_those_without_a_gradient_not_at_all() -> None:
    box = (2, 2, 11, 11)
    near, far = gradient((6, 6, 1000.0)), gradient((6, 9, 1e-3))
    assert effective_side([near, near], [box, box]) == 1
    assert effective_side([near, far, gradient()], [box, box, box]) == 7
    assert effective_side([gradient()], [box]) is None


def test_a_box_is_cut_around_its_middle_and_never_grows() -> None:
    assert effective_box((2, -4, 11, 5), 5) == (4, -2, 9, 3)
    assert effective_box((2, 2, 5, 5), 9) == (2, 2, 5, 5)
    assert effective_box((0, 0, 8, 12), 10) == (0, 1, 8, 11)
    assert effective_box((0, 0, 8, 8), None) == (0, 0, 8, 8)
