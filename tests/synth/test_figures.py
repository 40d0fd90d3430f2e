"""Figures of jobs: images beside each other, with captions."""

from __future__ import annotations

import numpy as np

from convlens.synth.images import beside
from convlens.visualization.text import text_image

RANDOM = np.random.default_rng(0)


def test_small_images_are_enlarged_alike_by_whole_squares_above_their_captions() -> None:
    small, large = (RANDOM.integers(0, 255, (side, side, 3), dtype=np.uint8) for side in (2, 3))
    figure = beside([small, large], ["sample", "made of it"])
    factor = 288 // 3
    for image_HWC, caption, left in ((small, "sample", 0), (large, "made of it", 2 * factor + 8)):
        side = len(image_HWC) * factor
        # Every pixel of a square is the image's.
        expected = image_HWC[np.arange(side) // factor][:, np.arange(side) // factor]
        np.testing.assert_array_equal(figure[:side, left : left + side], expected)
        words = text_image(caption, size=13, width=side)
        np.testing.assert_array_equal(figure[side + 4 : side + 4 + len(words), left : left + side], words)


def test_large_images_keep_their_pixels() -> None:
    large = RANDOM.integers(0, 255, (300, 200, 3), dtype=np.uint8)
    np.testing.assert_array_equal(beside([large], ["a"])[:300, :200], large)
