from __future__ import annotations

import numpy as np
import pytest
import skimage.color
import skimage.data

from convlens import visualization
from convlens.visualization import gradient_image, grid, overlay

CHELSEA = skimage.data.chelsea()[:60, :80]


def blob(sign: float = 1) -> np.ndarray:
    map_HW = np.zeros((60, 80))
    map_HW[20:40, 30:50] = sign
    return map_HW


def test_a_gradient_of_zero_is_mid_grey_and_the_limit_is_one_or_255():
    values_CHW = np.zeros((3, 1, 4))
    values_CHW[0, 0] = [0, 2, -2, 1]
    drawn = gradient_image(values_CHW, limit=2)[0]
    assert drawn.tolist() == [[128] * 3, [255, 128, 128], [1, 128, 128], [192, 128, 128]]
    assert (gradient_image(np.zeros((3, 4, 4))) == 128).all()


def test_all_channels_of_a_gradient_share_one_limit():
    values_CHW = np.stack([np.full((8, 8), 4.0), np.full((8, 8), 2.0), np.zeros((8, 8))])
    assert gradient_image(values_CHW)[0, 0].tolist() == [255, 192, 128]


@pytest.mark.parametrize("signed", [True, False])
def test_where_the_map_is_zero_the_grey_image_shows(signed):
    drawn = overlay(CHELSEA, blob(), signed=signed).astype(int)
    outside = drawn[blob() == 0]
    assert (outside == outside[:, :1]).all()
    luma = (CHELSEA @ [0.299, 0.587, 0.114])[blob() == 0]
    assert np.corrcoef(luma, outside[:, 0])[0, 1] > 0.999  # rounding alone


def test_red_speaks_for_and_blue_against():
    mean_for = overlay(CHELSEA, blob(1), signed=True)[20:40, 30:50].mean((0, 1))
    mean_against = overlay(CHELSEA, blob(-1), signed=True)[20:40, 30:50].mean((0, 1))
    assert mean_for[0] - mean_for[2] > 60
    assert mean_against[2] - mean_against[0] > 60


def test_in_an_unsigned_overlay_negative_values_count_as_zero():
    np.testing.assert_array_equal(overlay(CHELSEA, blob(-1), signed=False), overlay(CHELSEA, 0 * blob(), signed=False))


@pytest.mark.parametrize("signed", [True, False])
def test_colour_grows_with_the_map(signed):
    ramp_HW = np.tile(np.linspace(0, 1, 80), (60, 1))
    drawn = skimage.color.rgb2lab(overlay(np.full((60, 80, 3), 128, np.uint8), ramp_HW, signed=signed, limit=1))[0]
    difference = np.linalg.norm(drawn - drawn[0], axis=1)  # from the plain grey
    assert (np.diff(difference) > -0.5).all()  # 8-bit rounding
    assert difference[-1] > 40


def test_strength_is_the_colours_share_at_the_limit():
    white, black = np.full((1, 1, 3), 255, np.uint8), np.zeros((1, 1, 3), np.uint8)
    one = np.ones((1, 1))
    grey = overlay(white, one, signed=True, strength=0)
    assert np.ptp(grey) == 0
    full = overlay(white, one, signed=True, strength=1).astype(float)
    np.testing.assert_array_equal(overlay(black, one, signed=True, strength=1), full)
    np.testing.assert_allclose(overlay(white, one, signed=True, strength=0.25), 0.75 * grey + 0.25 * full, atol=0.5)


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_signs_are_vivid_on_any_photograph_and_equally_strong(ground):
    photograph = np.full((1, 2, 3), ground, np.uint8)
    drawn = skimage.color.rgb2lab(overlay(photograph, np.array([[1.0, -1.0]]), signed=True, limit=1))[0]
    chroma = np.hypot(drawn[:, 1], drawn[:, 2])
    assert (chroma > 45).all()  # sRGB's full red has 105
    assert abs(drawn[0, 0] - drawn[1, 0]) < 5  # of 100 steps of lightness


def test_the_photograph_stays_legible_under_the_strongest_colour():
    photograph = np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, 1, 3)).reshape(1, 256, 3)
    drawn = skimage.color.rgb2lab(overlay(photograph, np.ones((1, 256)), signed=True, limit=1))[0, :, 0]
    assert (np.diff(drawn) > -0.5).all()  # 8-bit rounding
    assert np.ptp(drawn) > 10  # of 100 steps of lightness


def test_smoothing_spreads_a_sparse_map():
    map_HW = np.zeros((60, 80))
    map_HW[30, 40] = 1

    def coloured(smooth: float) -> int:
        return int((np.ptp(overlay(CHELSEA, map_HW, signed=True, smooth=smooth).astype(int), axis=2) > 5).sum())

    assert coloured(0) == 1
    assert coloured(2) > 20


def test_a_grid_leaves_gaps_and_fills_a_short_last_row():
    images = [np.full((2, 3, 3), n, np.uint8) for n in (1, 2, 3)]
    sheet = grid(images, columns=2, gap=1, background=9)[..., 0]
    assert sheet.tolist() == [
        [1, 1, 1, 9, 2, 2, 2],
        [1, 1, 1, 9, 2, 2, 2],
        [9, 9, 9, 9, 9, 9, 9],
        [3, 3, 3, 9, 9, 9, 9],
        [3, 3, 3, 9, 9, 9, 9],
    ]


def test_a_grid_is_no_wider_than_its_images():
    assert grid([np.zeros((2, 3, 3), np.uint8)] * 2, columns=5, gap=1).shape == (2, 7, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlay(CHELSEA, np.zeros((5, 5)), signed=True), r"map of \(5, 5\) on image of \(60, 80, 3\)"),
        (lambda: overlay(CHELSEA, blob(), signed=True, strength=2), "strength=2"),
        (lambda: overlay(CHELSEA / 255, blob(), signed=True), "float64"),
        (lambda: overlay(CHELSEA, blob() * np.nan, signed=True), "not finite"),
        (lambda: gradient_image(np.zeros((1, 5, 5))), r"need \(3, H, W\)"),
        (lambda: gradient_image(np.full((3, 5, 5), np.nan)), "not finite"),
        (lambda: grid([], columns=1), "0 images"),
        (lambda: grid([CHELSEA], columns=0), "columns=0"),
        (lambda: grid([CHELSEA, CHELSEA[1:]], columns=2), "different sizes"),
    ],
)
def test_wrong_input_is_refused_with_what_was_given(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_version_0_1_s_names_still_hold():
    assert visualization.gradient_picture is gradient_image
    assert visualization.placed is visualization.place_in_image
