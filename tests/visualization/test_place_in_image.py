"""A map back at its place in the image it was cut from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from convlens import image
from convlens.types import ModelSpec
from convlens.visualization import place_in_image


def random_map(channels: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(channels, height, width)).astype(np.float32)


def test_at_its_own_size_the_map_comes_back_bit_for_bit() -> None:
    values = random_map(3, 5, 7)
    np.testing.assert_array_equal(place_in_image(values, size=(7, 5), box=(0, 0, 7, 5)), values)


def test_a_whole_number_of_pixels_away_it_is_only_moved() -> None:
    values = random_map(2, 3, 4)
    found = place_in_image(values, size=(10, 9), box=(5, 2, 9, 5))
    np.testing.assert_array_equal(found[:, 2:5, 5:9], values)
    found[:, 2:5, 5:9] = 0
    assert not found.any()


@pytest.mark.parametrize(("height", "width"), [(3, 4), (6, 5), (13, 29)])
def test_enlarged_it_is_torchs_bilinear_interpolation(height: int, width: int) -> None:
    values = random_map(2, 3, 4)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None], (height, width), mode="bilinear", align_corners=False
    )[0].numpy()
    np.testing.assert_allclose(
        place_in_image(values, size=(width, height), box=(0, 0, width, height)), wanted, atol=2e-6
    )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 5), (7, 3)])
def test_made_smaller_it_averages_as_torchs_antialiased_interpolation_does(height: int, width: int) -> None:
    values = random_map(1, 16, 20)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None], (height, width), mode="bilinear", align_corners=False, antialias=True
    )[0].numpy()
    found = place_in_image(values, size=(width, height), box=(0, 0, width, height))
    # torch cuts the filter off at the border, here the border is repeated: the same but for the outermost pixels.
    inner = (slice(None), slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(found[inner], wanted[inner], atol=2e-6)


@pytest.mark.parametrize("box", [(0.3, 1.2, 5.9, 4.4), (-0.4, 0.0, 3.6, 6.5), (2.5, 2.5, 3.5, 3.5)])
def test_a_constant_map_fills_the_pixels_whose_centres_lie_inside(box: tuple[float, float, float, float]) -> None:
    found = place_in_image(np.full((1, 4, 4), 3.0), size=(7, 6), box=box)
    left, top, right, bottom = box
    for y in range(6):
        for x in range(7):
            inside = left <= x + 0.5 <= right and top <= y + 0.5 <= bottom
            assert found[0, y, x] == pytest.approx(3.0 if inside else 0.0, abs=1e-12)


def test_a_mark_in_the_view_lies_over_the_same_mark_in_the_image() -> None:
    """A white dot, found in what the model saw, is put back onto the dot in the original."""
    pixels = np.zeros((300, 480, 3), np.uint8)
    pixels[190:202, 300:312] = 255
    spec = ModelSpec("m", 224, 256, "bilinear", (0.5,) * 3, (0.25,) * 3, ("a",), "fc", "features", "conv", "0" * 64)
    prepared = image.prepare(Image.fromarray(pixels), spec)
    seen = prepared.view_HWC[..., 0].astype(np.float32)[None] / 255
    found = place_in_image(seen, size=(480, 300), box=prepared.box)[0]
    y, x = (np.average(np.arange(n) + 0.5, weights=found.sum(axis)) for n, axis in ((300, 1), (480, 0)))
    assert (x, y) == pytest.approx((306, 196), abs=0.25)


@pytest.mark.parametrize(
    ("shape", "size", "box"),
    [((4, 4), (4, 4), (0, 0, 4, 4)), ((1, 4, 4), (0, 4), (0, 0, 1, 1)), ((1, 4, 4), (4, 4), (2, 0, 2, 4))],
)
def test_what_is_no_map_or_no_place_is_refused(shape: tuple[int, ...], size: tuple[int, int], box: tuple) -> None:
    with pytest.raises(ValueError, match="need"):
        place_in_image(np.zeros(shape), size=size, box=box)
