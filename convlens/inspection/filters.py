"""The weights of a convolution, as they are.

Figures of filters: each filter a picture, several networks side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from convlens.errors import RequestError, near_matches
from convlens.instrument import find_layer
from convlens.models import Classifier
from convlens.types import Bytes8, Floats
from convlens.visualization import gradient_image, grid
from convlens.visualization.layout import add_margin, enlarge, hstack, text_image, vstack


@dataclass(frozen=True)
class Filters:
    """The filters of one convolution: ``weights_OCHW`` is float32, O filters over C channels (of its group) each.

    Those of a first convolution act on the three colours, in the normalised units that the network is fed: divided by
    the spec's ``std`` they act on the 0..1 scale. ``on_colours`` says that a filter is a picture: that its three
    channels are red, green and blue. All other filters act on the channels of the layer before.
    """

    model: str
    layer: str
    kind: str
    weights_OCHW: Floats
    on_colours: bool


def layer_filters(classifier: Classifier, layer: str | None = None) -> Filters:
    """The filters of a two-dimensional convolution, by default of the first one.

    RequestError, with near matches, for a layer that there is not, and for one that is no such convolution.
    """
    name = classifier.spec.first_convolution if layer is None else layer
    found = find_layer(classifier.module, name)
    if not isinstance(found, nn.Conv2d):
        raise RequestError(
            f"layer {name!r} is a {type(found).__name__} and has no filters{_convolutions(classifier, name)}",
            field="layer",
        )
    weights_OCHW = np.array(found.weight.detach().float().cpu().numpy())
    weights_OCHW.flags.writeable = False
    on_colours = name == classifier.spec.first_convolution and weights_OCHW.shape[1] == 3
    return Filters(classifier.spec.name, name, type(found).__name__, weights_OCHW, on_colours)


def _convolutions(classifier: Classifier, given: str) -> str:
    """Those with names like it, or the first ones."""
    names = [name for name, part in classifier.module.named_modules() if isinstance(part, nn.Conv2d)]
    return near_matches(given, names) or f"; its first convolutions are {', '.join(names[:5])}"


Scaling = Literal["own", "shared"]
_PANEL = 520  # pixels that a panel's width comes close to
_MOST = 32  # rows and columns of a grid of greys: more cannot be read
_TITLE, _CAPTION = 20, 14
_SCALED = {
    "own": "each filter is scaled by itself, to its largest weight",
    "shared": "all filters are scaled alike, to the layer's largest weight",
}
_DARK = (
    "These are not directly interpretable: they weigh channels of the layer before, not colours, and what those "
    "channels mean is not in this picture."
)


def filters_figure(panels: Sequence[Filters], *, scaling: Scaling = "own") -> Bytes8:
    """A figure with one panel for each layer: filters in three colours as they are, others as a grid of greys.

    Zero is mid grey throughout. ``own``: each filter's largest weight, positive or negative, is full strength, so that
    faint ones can be read as well; ``shared``: the layer's largest weight is, so that strengths can be compared.
    """
    if not panels:
        raise RequestError("no layer to draw; give at least one")
    return add_margin(hstack([_panel(filters, scaling) for filters in panels], gap=40), margin=16)


def filter_pictures(weights_OCHW: Floats, *, scaling: Scaling = "own") -> list[Bytes8]:
    """Filters over red, green and blue as RGB pictures: 0 is 128, the largest weight 1 or 255."""
    limits = _limits(weights_OCHW, scaling)
    return [gradient_image(filter_CHW, limit=limit) for filter_CHW, limit in zip(weights_OCHW, limits, strict=True)]


def grey_pictures(weights_OCHW: Floats, *, most: int, scaling: Scaling = "own") -> list[Bytes8]:
    """The first ``most`` filters' first ``most`` channels as grey pictures, all channels of a filter together.

    A filter's scale is that of all its channels, also of those that are not shown.
    """
    limits = _limits(weights_OCHW, scaling)[:most]
    return [
        gradient_image(np.repeat(kernel_HW[None], 3, axis=0), limit=limit)
        for filter_CHW, limit in zip(weights_OCHW[:most], limits, strict=True)
        for kernel_HW in filter_CHW[:most]
    ]


def _limits(weights_OCHW: Floats, scaling: Scaling) -> list[float]:
    """The weight drawn at full strength, for each filter; of filters that are zero throughout any number will do."""
    largest_O = np.abs(weights_OCHW).max(axis=(1, 2, 3))
    if scaling == "shared":
        largest_O = np.full_like(largest_O, largest_O.max())
    return [float(largest) or 1.0 for largest in largest_O]


def _panel(filters: Filters, scaling: Scaling) -> Bytes8:
    tiles, columns, words = (_colours if filters.on_colours else _greys)(filters.weights_OCHW, scaling)
    factor = max(1, _PANEL // (columns * (tiles[0].shape[1] + 1)))
    sheet = grid([enlarge(tile, factor) for tile in tiles], columns=columns, gap=max(1, factor // 2))
    width = max(sheet.shape[1], _PANEL)
    title = text_image(f"{filters.model}  {filters.layer}", size=_TITLE, width=width)
    shape = "×".join(map(str, filters.weights_OCHW.shape))
    caption = f"{filters.kind} {shape}. {words} Zero is mid grey; {_SCALED[scaling]}."
    return vstack([title, sheet, text_image(caption, size=_CAPTION, width=width)], gap=8)


def _colours(weights_OCHW: Floats, scaling: Scaling) -> tuple[list[Bytes8], int, str]:
    tiles = filter_pictures(weights_OCHW, scaling=scaling)
    return tiles, math.ceil(math.sqrt(len(tiles))), "Weights over red, green and blue."


def _greys(weights_OCHW: Floats, scaling: Scaling) -> tuple[list[Bytes8], int, str]:
    """A row a filter, a column a channel, as many as can be read; a depthwise layer's single column as a square."""
    outputs, channels = weights_OCHW.shape[:2]
    if channels == 1:
        tiles = grey_pictures(weights_OCHW, most=_MOST**2, scaling=scaling)
        words = f"{_counted(len(tiles), outputs, 'filters')}, each over a single channel."
        return tiles, math.ceil(math.sqrt(len(tiles))), f"{words} {_DARK}"
    rows, columns = min(outputs, _MOST), min(channels, _MOST)
    over = _counted(columns, channels, "channels").lower()
    words = f"{_counted(rows, outputs, 'filters')} (rows) over {over} (columns)."
    return grey_pictures(weights_OCHW, most=_MOST, scaling=scaling), columns, f"{words} {_DARK}"


def _counted(shown: int, there_are: int, what: str) -> str:
    return f"All {there_are} {what}" if shown == there_are else f"The first {shown} of {there_are} {what}"
