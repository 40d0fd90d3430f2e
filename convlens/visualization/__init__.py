"""Maps to RGB: reducing, scaling, colour maps, overlays, grids. numpy only.

``maps`` turns values into maps and finds their scale; ``palettes`` turns maps into colours; ``pictures`` lays them over
photographs and side by side; ``placing`` puts a map back where it was cut from. Wrong shapes and NaN are bugs of the
caller, hence ValueError.
"""

from __future__ import annotations

from convlens.visualization.colormaps import diverging, sequential
from convlens.visualization.heatmaps import abs_max, place_in_image, resize_map, scale, signed_sum, smoothed
from convlens.visualization.overlays import gradient_image, grid, overlay

__all__ = [
    "abs_max",
    "diverging",
    "gradient_image",
    "grid",
    "overlay",
    "place_in_image",
    "resize_map",
    "scale",
    "sequential",
    "signed_sum",
    "smoothed",
]
