"""What is drawn of a map, against scipy and plain torch; what is sent as numbers stays as it was computed."""

from __future__ import annotations

import io
from typing import Any

import nets
import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from torch import nn

from convlens import visualization
from convlens.engine.engine import Engine
from convlens.models import Classifier
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.types import Attribution, Explanation, Reply

SIDE, CELL = 32, 8
PIXELS = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def network() -> Classifier:
    """Its last maps have cells of 8 x 8 pixels."""
    torch.manual_seed(3)
    middle = nn.Sequential(nn.ReLU(), nn.MaxPool2d(CELL), nn.Conv2d(6, 6, 1), nn.ReLU())
    module = nets.Sequential(middle, channels=6).eval()
    return nets.classifier(module, classes=3, crop=SIDE, gradcam_layer="middle")


def explained(method: str, **params: Any) -> Explanation:
    wanted = parse_params({"methods": [method], "output": ["overlay", "heatmap"], "target": 1, **params})
    (reply,) = Engine(network()).run([Request(Image.fromarray(PIXELS), wanted)])
    assert isinstance(reply, Reply), reply
    return reply.explanations[0]


def attribution(result: Explanation) -> Attribution:
    assert isinstance(result.result, Attribution)
    return result.result


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def spline(cells_HW: np.ndarray) -> np.ndarray:
    """The cubic B-spline over the cells, by scipy."""
    at = (np.arange(SIDE) + 0.5) / CELL - 0.5
    grid = np.meshgrid(at, at, indexing="ij")
    return scipy.ndimage.map_coordinates(cells_HW.astype(float), grid, order=3, prefilter=False, mode="nearest")


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam", "layer_cam", "grad_cam_plus_plus"])
def test_a_coarse_map_is_drawn_smoothly_from_its_cells(method: str) -> None:
    result = explained(method)
    smooth_HW = spline(attribution(result).extras["map_NCHW"][0, 0])
    assert np.abs(smooth_HW).max() > 0
    np.testing.assert_array_equal(picture(result.heatmap_png), visualization.diverging(smooth_HW))


def test_the_values_of_a_coarse_map_stay_bilinear() -> None:
    result = attribution(explained("grad_cam"))
    expected = nn.functional.interpolate(torch.from_numpy(result.extras["map_NCHW"]), (SIDE, SIDE), mode="bilinear")
    np.testing.assert_allclose(result.values_NCHW, expected, atol=1e-6)  # float32


def test_a_map_of_single_pixels_is_drawn_from_its_values() -> None:
    result = explained("saliency")
    expected = visualization.sequential(np.abs(attribution(result).values_NCHW[0]).max(axis=0))
    np.testing.assert_array_equal(picture(result.heatmap_png), expected)


SHARES = ["integrated_gradients", "input_x_gradient", "gradient_shap", "deep_lift"]


@pytest.mark.parametrize("method", SHARES)
def test_shares_of_single_pixels_are_overlaid_as_the_smoothed_positive_part(method: str) -> None:
    result = explained(method)
    share_HW = attribution(result).values_NCHW[0].astype(float).sum(axis=0)
    assert share_HW.min() < 0 < share_HW.max()
    smooth_HW = scipy.ndimage.gaussian_filter(share_HW.clip(0), 3, mode="nearest", radius=9)
    expected = visualization.overlay(PIXELS, smooth_HW, signed=True).astype(int)
    # Sums of float32 in another order may round another way.
    assert np.abs(picture(result.overlay_png) - expected).max() <= 1


@pytest.mark.parametrize("method", SHARES)
def test_shares_drawn_alone_keep_both_signs_pixel_by_pixel(method: str) -> None:
    result = explained(method)
    share_HW = attribution(result).values_NCHW[0].astype(float).sum(axis=0)
    np.testing.assert_array_equal(picture(result.heatmap_png), visualization.diverging(share_HW))


def test_a_coarse_map_is_overlaid_with_both_signs() -> None:
    result = explained("grad_cam")
    smooth_HW = spline(attribution(result).extras["map_NCHW"][0, 0])
    expected = visualization.overlay(PIXELS, smooth_HW, signed=True)
    np.testing.assert_array_equal(picture(result.overlay_png), expected)
