"""What the colours of drawn maps are said to stand for: drawn to that limit, a map is the image of the reply."""

from __future__ import annotations

import io

import numpy as np
import pytest
from engines import engine, picture, replied, request
from PIL import Image

from convlens import explain, image
from convlens.engine.rendering import drawn_map, heatmap_scale, overlay_scale
from convlens.types import Attribution, Bytes8, Explanation
from convlens.visualization import diverging, gradient_image, overlay, sequential, smoothed

DRAWN = {"diverging": diverging, "sequential": sequential}
# Of an overlay: where single pixels matter they are spread a little, and of shares only those for the class are drawn.
SIGMA = {"saliency": 2, "guided_backprop": 2, "integrated_gradients": 3}


@pytest.fixture(scope="module")
def explanations() -> dict[str, Explanation]:
    methods = ["saliency", "guided_backprop", "integrated_gradients", "grad_cam"]
    params = {"methods": methods, "output": ["array", "overlay", "heatmap"]}
    (reply,) = engine().run([request(1, **params)])
    return {item.id: item for item in replied(reply).explanations}


def decoded(png: bytes) -> Bytes8:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("name", ["saliency", "guided_backprop", "integrated_gradients", "grad_cam"])
def test_a_map_drawn_to_the_limit_that_its_bar_names_is_the_map_of_the_reply(
    explanations: dict[str, Explanation], name: str
) -> None:
    item = explanations[name]
    assert isinstance(item.result, Attribution)
    drawn = heatmap_scale(item.result, explain.get(name))
    if drawn.colours == "grey":
        expected = gradient_image(item.result.values_NCHW[0], limit=drawn.limit)
    else:
        expected = DRAWN[drawn.colours](drawn_map(item.result, explain.get(name)), limit=drawn.limit)
    np.testing.assert_array_equal(decoded(item.heatmap_png), expected)


@pytest.mark.parametrize(
    ("name", "colours"),
    [
        ("saliency", "over-sequential"),
        ("guided_backprop", "over-sequential"),
        ("integrated_gradients", "over-positive"),
        ("grad_cam", "over-diverging"),
    ],
)
def test_an_overlay_drawn_to_the_limit_that_its_bar_names_is_the_overlay_of_the_reply(
    explanations: dict[str, Explanation], name: str, colours: str
) -> None:
    item = explanations[name]
    assert isinstance(item.result, Attribution)
    drawn = overlay_scale(item.result, explain.get(name))
    assert drawn.colours == colours
    map_HW = drawn_map(item.result, explain.get(name))
    map_HW = smoothed(map_HW.clip(0) if colours == "over-positive" else map_HW, sigma=SIGMA.get(name, 0))
    view_HWC = image.prepare(picture(1), engine().model.spec).view_HWC
    expected = overlay(view_HWC, map_HW, signed=colours != "over-sequential", limit=drawn.limit)
    np.testing.assert_array_equal(decoded(item.overlay_png), expected)
