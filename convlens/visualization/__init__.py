"""Maps to RGB: reducing, scaling, colour maps, overlays, grids. numpy only.

``heatmaps`` reduces values to maps, finds their scale and puts them back where they were cut from; ``colormaps`` turns
maps into colours; ``overlays`` lays them over photographs and side by side; ``colourbar`` is a map's legend;
``layout`` sets text beside images. Wrong shapes and NaN are bugs of the caller, hence ValueError.
"""

from __future__ import annotations

from convlens.visualization.colormaps import diverging, sequential
from convlens.visualization.colourbar import colour_bar
from convlens.visualization.heatmaps import (
    abs_max,
    place_in_image,
    resize_map,
    resize_smoothly,
    scale,
    signed_sum,
    smoothed,
)
from convlens.visualization.overlays import draw_gradient, gradient_image, grid, overlay

# As version 0.1.0 called them.
gradient_picture, placed = gradient_image, place_in_image

__all__ = [
    "abs_max",
    "colour_bar",
    "diverging",
    "draw_gradient",
    "gradient_image",
    "gradient_picture",
    "grid",
    "overlay",
    "place_in_image",
    "placed",
    "resize_map",
    "resize_smoothly",
    "scale",
    "sequential",
    "signed_sum",
    "smoothed",
]
