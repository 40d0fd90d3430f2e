"""The maps and pictures that the explorer's page draws, held against the library's and against scipy's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from node_bridge import NODE, JavaScriptError, NodeBridge, node_bridge
from scipy import interpolate, ndimage

from convlens import visualization
from convlens.evaluation.relevance import relevance
from convlens.visualization.colormaps import vivid_signs

pytestmark = pytest.mark.skipif(NODE is None, reason="no node on the PATH")
HEIGHT, WIDTH = 19, 26
SEQUENTIAL = visualization.sequential(np.linspace(0, 1, 256)[None], limit=1)[0].tolist()
DIVERGING = visualization.diverging(np.linspace(-1, 1, 511)[None], limit=1)[0].tolist()
TABLES = {
    "sequential": SEQUENTIAL,
    "diverging": DIVERGING,
    "vivid": vivid_signs(np.array([[-1.0, 1.0]]))[0].tolist(),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeBridge]:
    with node_bridge(tmp_path_factory.mktemp("page")) as bridge:
        yield bridge


def values(channels: int = 1) -> np.ndarray:
    """Signed, with the long tails that gradients have, and a stretch of zeros."""
    rng = np.random.default_rng(channels)
    values_CHW = rng.standard_normal((channels, HEIGHT, WIDTH)) ** 3
    values_CHW[:, :4, :5] = 0
    return values_CHW.astype(np.float32)


def photograph() -> np.ndarray:
    return np.random.default_rng(9).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def rgba(image_HWC: np.ndarray) -> np.ndarray:
    return np.dstack([image_HWC, np.full(image_HWC.shape[:2], 255, np.uint8)]).reshape(-1)


def rgb(found: np.ndarray) -> np.ndarray:
    rgba_HWC = found.reshape(HEIGHT, WIDTH, 4)
    assert (rgba_HWC[..., 3] == 255).all()
    return rgba_HWC[..., :3].astype(int)


def result(drawing: str, channels: int, cells: np.ndarray | None = None) -> dict[str, Any]:
    coarse = None if cells is None else {"values": cells.reshape(-1), "dims": [1, *cells.shape]}
    dims = [channels, HEIGHT, WIDTH]
    return {"values": values(channels).reshape(-1), "dims": dims, "drawing": drawing, "cells": coarse}


def assert_near(found: np.ndarray, expected: np.ndarray, levels: int = 1) -> None:
    assert np.abs(rgb(found) - expected.astype(int)).max() <= levels


@pytest.mark.parametrize("drawing", ["signed", "magnitude", "gradient"])
@pytest.mark.parametrize("channels", [1, 3])
def test_values_become_one_relevance_a_pixel_as_in_the_library(node, drawing, channels):
    found = node("drawing", "relevance", values(channels).reshape(-1), [channels, HEIGHT, WIDTH], drawing)
    np.testing.assert_array_equal(found.reshape(HEIGHT, WIDTH), relevance(values(channels), drawing))


@pytest.mark.parametrize("quantile", [0.999, 0.99, 0.5, 0.3, 1.0, 0.0])
def test_the_limit_is_numpys_quantile_of_the_magnitudes(node, quantile):
    map_HW = values()[0, 5:]
    expected = np.quantile(np.abs(map_HW.astype(np.float64)), quantile)
    assert node("drawing", "limitOf", map_HW.reshape(-1), quantile) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(("sparse", "expected"), [(np.eye(40, dtype=np.float32)[:1], 1.0), (np.zeros(9), 1.0)])
def test_a_sparse_map_is_drawn_to_its_largest_value_and_an_empty_one_to_1(node, sparse, expected):
    assert node("drawing", "limitOf", np.asarray(sparse).reshape(-1) * 1.0, 0.5) == expected


@pytest.mark.parametrize("sigma", [0, 0.3, 1, 2, 3, 12])
def test_smoothing_is_scipys_gaussian_out_to_three_sigma(node, sigma):
    map_HW = values()[0].astype(np.float64)
    found = node("drawing", "smooth", map_HW.reshape(-1), WIDTH, HEIGHT, sigma).reshape(HEIGHT, WIDTH)
    radius = int(np.ceil(3 * sigma))
    expected = ndimage.gaussian_filter(map_HW, sigma, mode="nearest", radius=radius) if sigma else map_HW
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found, visualization.smoothed(map_HW, sigma=sigma), rtol=0, atol=1e-12)


def test_a_coarse_map_is_enlarged_by_the_cubic_b_spline_over_its_cells(node):
    cells = values()[0, :5, 5:11].astype(np.float64)
    found = node("drawing", "resizeSmoothly", cells.reshape(-1), [1, 5, 6], HEIGHT, WIDTH).reshape(HEIGHT, WIDTH)
    np.testing.assert_allclose(found, visualization.resize_smoothly(cells, HEIGHT, WIDTH), rtol=0, atol=1e-12)
    spline = interpolate.BSpline.basis_element(np.arange(-2, 3), extrapolate=False)
    near = [np.nan_to_num(spline(9.5 * 5 / HEIGHT - 0.5 - row)) for row in range(5)]  # of the middle row
    across = [np.nan_to_num(spline(13.5 * 6 / WIDTH - 0.5 - column)) for column in range(6)]
    assert found[9, 13] == pytest.approx(np.asarray(near) @ cells @ np.asarray(across), abs=1e-12)


@pytest.mark.parametrize("limit", [None, 0.7])
@pytest.mark.parametrize("signed", [False, True], ids=["sequential", "diverging"])
def test_a_map_has_the_librarys_colours(node, signed, limit):
    map_HW = values()[0]
    options = {"signed": signed, "colormap": DIVERGING if signed else SEQUENTIAL}
    options |= {} if limit is None else {"limit": limit}
    colours = visualization.diverging if signed else visualization.sequential
    found = node("drawing", "colours", map_HW.reshape(-1), options)
    np.testing.assert_array_equal(rgb(found), colours(map_HW, limit=limit))


def test_a_diverging_table_of_256_rows_is_read_between_its_rows(node):
    table = visualization.diverging(np.linspace(-1, 1, 256)[None], limit=1)[0].tolist()
    found = node("drawing", "colours", values()[0].reshape(-1), {"signed": True, "colormap": table})
    # The table's own rows are those of 511, rounded; the darkest parts change by two levels from one to the next.
    assert_near(found, visualization.diverging(values()[0]), levels=2)


@pytest.mark.parametrize("limit", [None, 0.4])
def test_a_gradient_is_drawn_around_mid_grey_as_in_the_library(node, limit):
    arguments = [values(3).reshape(-1), [3, HEIGHT, WIDTH], *([] if limit is None else [limit])]
    found = node("drawing", "gradientColours", *arguments)
    np.testing.assert_array_equal(rgb(found), visualization.gradient_image(values(3), limit=limit))


@pytest.mark.parametrize(("opacity", "limit"), [(0.75, None), (1.0, 0.5), (0.2, None), (0.0, 2.0)])
@pytest.mark.parametrize("signed", [False, True], ids=["magnitude", "signed"])
def test_an_overlay_equals_the_librarys(node, signed, opacity, limit):
    map_HW, image = values()[0], photograph()
    options = {"signed": signed, "tables": TABLES} | ({} if limit is None else {"limit": limit})
    found = node("drawing", "overlay", rgba(image), map_HW.reshape(-1), opacity, options)
    assert_near(found, visualization.overlay(image, map_HW, signed=signed, strength=opacity, limit=limit))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("drawing", ["signed", "magnitude", "gradient"])
def test_a_result_is_drawn_alone_in_the_colours_of_its_kind(node, drawing, channels):
    found = node("drawing", "heatmap", result(drawing, channels), TABLES)
    if drawing == "gradient":
        expected = visualization.draw_gradient(values(channels))
    elif drawing == "signed":
        expected = visualization.diverging(values(channels).sum(0, dtype=np.float64))
    else:
        expected = visualization.sequential(np.abs(values(channels)).max(0))
    assert_near(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_single_pixels_are_spread_before_they_are_laid_over_a_picture(node, channels):
    found = node("drawing", "overlaidMap", result("magnitude", channels), "both").reshape(HEIGHT, WIDTH)
    map_HW = np.abs(values(channels).astype(np.float64)).max(0)
    expected = map_HW if channels == 1 else ndimage.gaussian_filter(map_HW, 2, mode="nearest", radius=6)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_of_shares_that_change_sign_only_those_for_the_class_are_laid_over(node):
    found = node("drawing", "overlaidMap", result("signed", 3), "positive").reshape(HEIGHT, WIDTH)
    shares_HW = values(3).astype(np.float64).sum(0).clip(0)
    np.testing.assert_allclose(found, ndimage.gaussian_filter(shares_HW, 3, mode="nearest", radius=9), atol=1e-12)


def test_a_coarse_map_is_drawn_from_its_cells(node):
    cells = values()[0, :3, 7:11]
    found = node("drawing", "drawnMap", result("signed", 1, cells)).reshape(HEIGHT, WIDTH)
    np.testing.assert_allclose(found, visualization.resize_smoothly(cells, HEIGHT, WIDTH), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("relevance", [np.zeros(7), [1, 2, 4], "signed"], "7 values; need 1 x 2 x 4"),
        ("relevance", [np.array([1.0, np.nan]), [1, 1, 2], "signed"], "1 values are not finite"),
        ("smooth", [np.zeros(4), 2, 2, -1], "sigma=-1 is not a width in pixels"),
        ("smooth", [np.zeros(4), 2, 3, 1], "a map of 4 values; need 3 x 2"),
        ("colours", [np.zeros(4), {"limit": 0, "colormap": SEQUENTIAL}], "limit=0 is no scale"),
        ("gradientColours", [np.zeros(4), [1, 2, 2]], "values of 1 channels; only three make colours"),
        (
            "overlay",
            [np.zeros(16, np.uint8), np.zeros(3), 0.5, {"tables": TABLES}],
            "a map of 3 pixels on a picture of 4",
        ),
        ("overlay", [np.zeros(16, np.uint8), np.zeros(4), 1.5, {"tables": TABLES}], "opacity 1.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_map_is_refused_in_words(node, function, arguments, message):
    with pytest.raises(JavaScriptError) as error:
        node("drawing", function, *arguments)
    assert message in str(error.value)
