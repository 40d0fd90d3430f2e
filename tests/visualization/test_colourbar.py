"""A bar's colours are those of the map, and its ticks stand where their numbers belong."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest

from convlens.visualization import colour_bar, diverging, sequential
from convlens.visualization.colourbar import tick_values
from convlens.visualization.text import text_image

HEIGHT, TOP, BAR = 212, 6, 200  # half a letter's height above and below the bar
INK = 20


def ticks(bar_HWC: np.ndarray) -> np.ndarray:
    """Rows of the bar, from its first, in which a tick's line begins."""
    return np.flatnonzero((bar_HWC[:, 16] == INK).all(axis=1)) - TOP


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sequential", lambda: sequential(np.linspace(8, 0, BAR)[:, None], limit=8)[:, 0]),
        ("diverging", lambda: diverging(np.linspace(8, -8, BAR)[:, None], limit=8)[:, 0]),
        ("grey", lambda: np.rint(128 + 127 * np.linspace(1, -1, BAR))[:, None].repeat(3, axis=1)),
    ],
)
def test_the_bar_runs_from_the_limit_down_in_the_map_s_colours(kind, expected):
    bar_HWC = colour_bar(8, kind=kind, height=HEIGHT)
    assert bar_HWC.shape[0] == HEIGHT
    for column in (1, 14):
        np.testing.assert_array_equal(bar_HWC[TOP : TOP + BAR, column], expected())


def test_a_line_of_grey_parts_the_bar_from_the_paper():
    bar_HWC = colour_bar(8, kind="diverging", height=HEIGHT)
    framed = bar_HWC[TOP - 1 : TOP + BAR + 1, :16]
    inside = np.zeros(framed.shape[:2], bool)
    inside[1:-1, 1:-1] = True
    assert (framed[~inside] == 150).all()
    assert (bar_HWC[: TOP - 1, :16] == 255).all()


def test_ticks_stand_at_the_row_of_their_value():
    # 2, 1.5, 1, 0.5 and 0 of 2: every quarter of the 199 steps between the first row and the last
    assert ticks(colour_bar(2, kind="sequential", height=HEIGHT)).tolist() == [0, 50, 100, 149, 199]
    # 0.4 and 0.2 up, 0 in the middle, and the same below: multiples of 0.2 over 0.5
    expected = np.rint((0.5 - np.array([0.4, 0.2, 0, -0.2, -0.4])) / 1 * 199)
    found = ticks(colour_bar(0.5, kind="diverging", height=HEIGHT))
    np.testing.assert_allclose(found, expected, atol=1)  # a half rounds either way


def test_the_number_beside_a_tick_is_its_value():
    bar_HWC = colour_bar(2, kind="sequential", height=HEIGHT)
    row = TOP + ticks(bar_HWC)[1]
    drawn = bar_HWC[row - 6 : row + 7, 23:]
    text = text_image("1.5", size=12, width=drawn.shape[1])
    inked = text[(text < 200).any(axis=(1, 2))]
    first = np.flatnonzero((drawn < 200).any(axis=(1, 2)))[0]
    np.testing.assert_array_equal(drawn[first : first + len(inked), : inked.shape[1] - 1], inked[:, :-1])


@pytest.mark.parametrize(("low", "high"), [("0", "1"), ("0", "3.37"), ("-0.5", "0.5"), ("0", "7e-6"), ("-99", "99")])
@pytest.mark.parametrize("most", [2, 3, 5, 9])
def test_ticks_are_the_multiples_of_the_finest_round_step_that_fits(low, high, most):
    ends = Fraction(low), Fraction(high)
    # Every step there is, finest first, in fractions: no rounding at all.
    steps = (mantissa * Fraction(10) ** power for power in range(-9, 4) for mantissa in (1, 2, 5))
    multiples = ((step, range(ceil(ends[0] / step), floor(ends[1] / step) + 1)) for step in steps)
    step, numbers = next(each for each in multiples if each[1].stop - each[1].start <= most)
    assert tick_values(float(low), float(high), most=most) == [float(n * step) for n in numbers]


def test_decimals_are_not_those_of_binary_arithmetic():
    assert tick_values(0, 0.35, most=4) == [0, 0.1, 0.2, 0.3]


def test_a_unit_stands_above_the_bar():
    plain, named = (colour_bar(2, kind="sequential", height=HEIGHT, unit=unit) for unit in ("", "logit"))
    text = text_image("logit", size=12, width=named.shape[1])
    np.testing.assert_array_equal(named[: len(text)], text)
    assert named.shape[0] == plain.shape[0]
    assert len(ticks(named)) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0, "height": 100}, "limit=0"),
        ({"limit": np.nan, "height": 100}, "limit=nan"),
        ({"limit": 1, "height": 20}, "height=20"),
        ({"limit": 1, "height": 48, "unit": "logit"}, "no room for the unit 'logit'"),
    ],
)
def test_a_bar_that_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        colour_bar(options.pop("limit"), kind="grey", **options)


@pytest.mark.parametrize(
    ("kind", "top", "bottom"),
    [("over-diverging", "red", "blue"), ("over-positive", "red", "grey"), ("over-sequential", "yellow", "grey")],
)
def test_the_bar_of_an_overlay_runs_to_the_grey_of_the_photograph_or_to_blue(kind, top, bottom):
    sheet = colour_bar(1.0, kind=kind, height=200).astype(int)
    seen = {place: sheet[row, 8] for place, row in (("top", 10), ("bottom", 190))}

    def name(rgb):
        red, green, blue = rgb
        if max(rgb) - min(rgb) < 12:
            return "grey"
        return "blue" if blue > red else "yellow" if green > 1.5 * blue else "red"

    assert (name(seen["top"]), name(seen["bottom"])) == (top, bottom)
