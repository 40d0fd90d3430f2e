"""Two colour maps, both built in OKLab so that equal steps look equal.

OKLab: B. Ottosson, "A perceptual color space for image processing", 2020; matrices from there. Lightness is counted as
in his "Okhsv and Okhsl", 2021, which agrees with CIE L*: OKLab's own crowds a fifth of a ramp into black.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from convlens.types import Bytes8, Floats
from convlens.visualization.heatmaps import divide_by_limit

# OKLab to the cube roots of the cones' responses, and those responses to linear sRGB (Ottosson 2020).
_CUBE_ROOTS_OF_LAB = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_RGB_OF_CONES = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)

# Knots of lightness 0..1, OKLab chroma and hue in degrees: black, indigo, magenta, red, orange, yellow, nearly white.
_SEQUENTIAL = np.array(
    [
        (0.00, 0.000, 285),
        (0.10, 0.110, 290),
        (0.25, 0.160, 325),
        (0.47, 0.190, 385),
        (0.67, 0.160, 415),
        (0.86, 0.140, 455),
        (0.98, 0.035, 465),
    ]
)
# White to either end at equal lightness, so neither sign looks stronger; colour-blind people tell red from blue.
_END_LIGHTNESS, _END_CHROMA, _RED, _BLUE = 0.38, 0.19, 27, 258
# Over a photograph: as strong as sRGB allows at one lightness, so that colour says the sign and its share how much.
_VIVID_LIGHTNESS, _VIVID_CHROMA = 0.56, 0.22


def sequential(map_HW: Floats, *, limit: float | None = None) -> Bytes8:
    """A non-negative map as RGB: black over violet, red and yellow to nearly white, lightness rising evenly.

    ``limit`` is drawn brightest; by default the map's own scale. Negative values are drawn black.
    """
    part_HW = divide_by_limit(map_HW, limit)
    return np.asarray(_sequential_table()[np.rint(part_HW.clip(0, 1) * 255).astype(np.intp)])


def diverging(map_HW: Floats, *, limit: float | None = None) -> Bytes8:
    """A signed map as RGB: blue at -limit, exactly white at 0, red at +limit, equally dark at equal distance."""
    part_HW = divide_by_limit(map_HW, limit)
    return np.asarray(_diverging_table()[np.rint(part_HW * 255).astype(np.intp) + 255])


def vivid_signs(map_HW: Floats) -> Bytes8:
    """One red where the map is above or at 0, one blue of equal lightness where it is below, both vivid."""
    return np.asarray(_vivid_table()[(map_HW >= 0).astype(np.intp)])


@cache
def _vivid_table() -> Bytes8:
    """Blue, red."""
    both = np.ones(2)
    return _srgb(_VIVID_LIGHTNESS * both, _VIVID_CHROMA * both, np.array([_BLUE, _RED]))


@cache
def _sequential_table() -> Bytes8:
    """Rows 0..255 for 0..1."""
    lightness, chroma, hue = _SEQUENTIAL.T
    even = np.linspace(0, lightness[-1], 256)
    return _srgb(even, np.interp(even, lightness, chroma), np.interp(even, lightness, hue))


@cache
def _diverging_table() -> Bytes8:
    """Rows 0..510 for -1..1."""
    part = np.linspace(-1, 1, 511)
    lightness = 1 - np.abs(part) * (1 - _END_LIGHTNESS)
    return _srgb(lightness, np.abs(part) * _END_CHROMA, np.where(part < 0, _BLUE, _RED))


def _srgb(lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]) -> Bytes8:
    """OKLab in cylinder coordinates to sRGB bytes; what sRGB cannot show is clipped."""
    angle = np.radians(hue)
    lab = np.stack([_oklab_lightness(lightness), chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    linear = ((lab @ _CUBE_ROOTS_OF_LAB.T) ** 3 @ _RGB_OF_CONES.T).clip(0, 1)
    # The transfer curve of sRGB (IEC 61966-2-1).
    curved = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    table: Bytes8 = np.rint(curved * 255).astype(np.uint8)
    table.flags.writeable = False  # cached, hence shared by all callers
    return table


def _oklab_lightness(lightness: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of Ottosson's "toe"."""
    k1, k2 = 0.206, 0.03
    k3 = (1 + k1) / (1 + k2)
    return np.asarray(lightness * (lightness + k1) / (k3 * (lightness + k2)))
