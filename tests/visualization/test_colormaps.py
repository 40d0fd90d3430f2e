from __future__ import annotations

import numpy as np
import pytest
import skimage.color

from convlens.visualization import diverging, sequential

RAMP = np.linspace(0, 1, 256)[None]


def lightness(image_HWC: np.ndarray) -> np.ndarray:
    """CIE L*, 0..100, by skimage: another colour space than the one the palettes are built in."""
    return skimage.color.rgb2lab(image_HWC)[..., 0]


def test_lightness_rises_evenly_from_black_to_nearly_white():
    l_W = lightness(sequential(RAMP, limit=1))[0]
    assert (np.diff(l_W) >= 0).all()
    assert (np.diff(l_W[::4]) > 0).all()  # 8-bit rounding may hold a single step back
    assert l_W[0] == 0
    assert l_W[-1] > 95
    np.testing.assert_allclose(l_W, RAMP[0] * l_W[-1], atol=5)  # of 100; the two models differ by 4 in the dark


def test_neighbouring_values_get_neighbouring_colours():
    lab = skimage.color.rgb2lab(sequential(RAMP, limit=1))[0]
    assert np.linalg.norm(np.diff(lab, axis=0), axis=1).max() < 3  # about one just noticeable difference


def test_negative_values_are_black_and_values_above_the_limit_are_the_brightest():
    drawn = sequential(np.array([[-5.0, 0, 1, 9]]), limit=1)[0]
    assert drawn[0].tolist() == drawn[1].tolist() == [0, 0, 0]
    assert drawn[2].tolist() == drawn[3].tolist()


def test_zero_is_exactly_white_and_red_is_for():
    drawn = diverging(np.array([[-1.0, 0, 1]]), limit=1)[0].astype(int)
    assert drawn[1].tolist() == [255, 255, 255]
    assert drawn[2][0] > 150 > 50 > drawn[2][2]
    assert drawn[0][2] > 150 > 50 > drawn[0][0]


def test_both_signs_are_equally_dark_and_darken_monotonically():
    l_W = lightness(diverging(np.linspace(-1, 1, 511)[None], limit=1))[0]
    assert (np.diff(l_W[:256]) >= 0).all()
    assert (np.diff(l_W[255:]) <= 0).all()
    np.testing.assert_allclose(l_W, l_W[::-1], atol=2.5)  # of 100


# Viénot, Brettel & Mollon 1999: what a dichromat confuses, as matrices on linear RGB
PROTAN = [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]
DEUTAN = [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]


@pytest.mark.parametrize("sight", [PROTAN, DEUTAN])
def test_for_and_against_differ_for_the_colour_blind(sight):
    linear = (diverging(np.array([[-0.5, 0.5]]), limit=1)[0] / 255) ** 2.2
    seen = (linear @ np.transpose(sight)).clip(0, 1) ** (1 / 2.2)
    against, for_ = skimage.color.rgb2lab(seen[None])[0]
    assert np.linalg.norm(against - for_) > 30  # 2.3 is just noticeable


def test_without_a_limit_the_map_sets_its_own_scale():
    np.testing.assert_array_equal(sequential(RAMP * 1e-12), sequential(RAMP * 1e6))


@pytest.mark.parametrize("draw", [sequential, diverging])
@pytest.mark.parametrize("size", [0, 5e-324, 1e-310, 1e300])
def test_no_size_of_values_breaks_the_drawing(draw, size):
    with np.errstate(all="raise", under="ignore"):
        drawn = draw(np.array([[0.0, size, -size]]))
    assert drawn.shape == (1, 3, 3)
    assert drawn.dtype == np.uint8


def test_values_far_beyond_the_limit_do_not_overflow():
    with np.errstate(all="raise"):
        assert diverging(np.array([[1e300]]), limit=1e-300).tolist() == diverging(np.array([[1.0]]), limit=1).tolist()


def test_what_is_returned_is_the_callers_own():
    sequential(RAMP)[:] = 0
    assert sequential(RAMP)[0, -1].min() > 200
