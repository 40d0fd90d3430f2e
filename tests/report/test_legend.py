"""The legend's colours, which a style sheet holds, against those that maps are drawn in."""

from __future__ import annotations

import re

import numpy as np
import pytest

from convlens.report.html import asset
from convlens.types import Bytes8
from convlens.visualization import diverging, gradient_image, overlay, sequential

GREY = np.full((1, 9, 3), 128, np.uint8)  # of a photograph
UP, BOTH = np.linspace(0, 1, 9)[None], np.linspace(-1, 1, 9)[None]
THREE = np.tile(np.linspace(-1, 1, 3), (3, 1, 1))


@pytest.mark.parametrize(
    ("name", "drawn_HWC"),
    [
        ("sequential", sequential(UP, limit=1)),
        ("diverging", diverging(BOTH, limit=1)),
        ("grey", gradient_image(THREE, limit=1)),
        ("over-sequential", overlay(GREY, UP, signed=False, limit=1)),
        ("over-positive", overlay(GREY, UP, signed=True, limit=1)),
        ("over-diverging", overlay(GREY, BOTH, signed=True, limit=1)),
    ],
)
def test_the_legend_has_the_colours_of_the_maps(name: str, drawn_HWC: Bytes8) -> None:
    (stops,) = re.findall(rf"^\.{name} {{ background: linear-gradient\(90deg, (.*)\); }}$", asset("report.css"), re.M)
    assert stops.split(", ") == ["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in drawn_HWC[0].tolist()]
