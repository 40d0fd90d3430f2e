"""The weights of a convolution, and their drawing: each filter an image, several layers or networks side by side."""

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
from convlens.visualization import colour_bar, gradient_image, grid
from convlens.visualization.layout import add_margin, enlarge, hstack, text_image, vstack

Scaling = Literal["own", "shared"]
_PANEL = 520  # pixels that a panel's width comes close to
_MOST = 32  # rows and columns of a grid of greys: more cannot be read
_TITLE, _CAPTION, _SMALL = 20, 14, 11
_LEFT, _TOP = 34, 18  # pixels for the numbers of rows and columns
_LINE, _NUMBER = 15, 30  # pixels that one number takes, down and across
_LEAST_BAR, _LARGEST_BAR = 96, 320  # pixels: heights of colour bars
_SCALING_CAPTIONS = {
    "own": "each filter is scaled by itself, to its largest weight",
    "shared": "all filters are scaled alike, to the layer's largest weight",
}
_NUMBERED = "A filter's number is its row's plus its column's."
_DEEP_CAPTION = (
    "These are not directly interpretable: they weigh channels of the layer before, not colours, and what those "
    "channels mean is not in this picture."
)


# ---- numbers


@dataclass(frozen=True)
class Filters:
    """The filters of one convolution: ``weights_OCHW`` is float32, O filters over C channels (of its group) each.

    Those of a first convolution act on colours in the normalised units of the network's input; divided by the spec's
    ``std`` they act on the 0..1 scale. ``on_colours`` says that a filter is an image, its three channels red, green and
    blue. All other filters act on the channels of the layer before.
    """

    model: str
    layer: str
    kind: str
    weights_OCHW: Floats
    on_colours: bool


def layer_filters(classifier: Classifier, layer: str | None = None) -> Filters:
    """The filters of a two-dimensional convolution, by default of the first one.

    RequestError, with near matches, for an unknown layer and for one that is no such convolution.
    """
    name = classifier.spec.first_convolution if layer is None else layer
    module = find_layer(classifier.module, name)
    if not isinstance(module, nn.Conv2d):
        convolutions = [name for name, part in classifier.module.named_modules() if isinstance(part, nn.Conv2d)]
        suggestion = near_matches(name, convolutions) or f"; its first convolutions are {', '.join(convolutions[:5])}"
        raise RequestError(f"layer {name!r} is a {type(module).__name__} and has no filters{suggestion}", field="layer")
    weights_OCHW = np.array(module.weight.detach().float().cpu().numpy())
    weights_OCHW.flags.writeable = False
    # Three channels alone do not make colours: a deeper layer may have three as well.
    on_colours = name == classifier.spec.first_convolution and weights_OCHW.shape[1] == 3
    return Filters(classifier.spec.name, name, type(module).__name__, weights_OCHW, on_colours)


# ---- drawing


def draw_filters(panels: Sequence[Filters], *, scaling: Scaling = "own") -> Bytes8:
    """A figure with one panel per layer: filters over colours as RGB images, others as a grid of grey images.

    Zero is mid grey throughout. ``own``: each filter's largest weight, positive or negative, has full strength, so that
    faint filters can be read as well; ``shared``: the layer's largest weight has, so that strengths can be compared.
    """
    if not panels:
        raise RequestError("no layer to draw; give at least one")
    return add_margin(hstack([_panel(filters, scaling) for filters in panels], gap=40), margin=16)


def filter_images(weights_OCHW: Floats, *, scaling: Scaling = "own") -> list[Bytes8]:
    """Filters over red, green and blue as RGB images: 0 becomes 128, the largest weight 1 or 255."""
    limits = _limits(weights_OCHW, scaling)
    return [gradient_image(filter_CHW, limit=limit) for filter_CHW, limit in zip(weights_OCHW, limits, strict=True)]


def grey_images(weights_OCHW: Floats, *, most: int, scaling: Scaling = "own") -> list[Bytes8]:
    """The first ``most`` filters' first ``most`` channels as grey images, all channels of a filter together.

    A filter's scale is that of all its channels, including those that are not drawn.
    """
    limits = _limits(weights_OCHW, scaling)[:most]
    return [
        gradient_image(np.repeat(kernel_HW[None], 3, axis=0), limit=limit)
        for filter_CHW, limit in zip(weights_OCHW[:most], limits, strict=True)
        for kernel_HW in filter_CHW[:most]
    ]


def _limits(weights_OCHW: Floats, scaling: Scaling) -> list[float]:
    """The weight drawn at full strength, for each filter."""
    largest_O = np.abs(weights_OCHW).max(axis=(1, 2, 3))
    if scaling == "shared":
        largest_O = np.full_like(largest_O, largest_O.max())
    return [float(largest) or 1.0 for largest in largest_O]  # any limit draws a filter of zeros as grey


def _panel(filters: Filters, scaling: Scaling) -> Bytes8:
    tiles, columns, description = (_colour_tiles if filters.on_colours else _grey_tiles)(filters.weights_OCHW, scaling)
    factor = max(1, _PANEL // (columns * (tiles[0].shape[1] + 1)))
    gap = max(1, factor // 2)
    sheet = grid([enlarge(tile, factor) for tile in tiles], columns=columns, gap=gap)
    rows_pitch, columns_pitch = (factor * side + gap for side in tiles[0].shape[:2])
    sheet = _with_numbers(sheet, filters, columns, pitch=(rows_pitch, columns_pitch))
    if scaling == "shared":
        # Where each filter has a scale of its own, there are no numbers that hold for all.
        height = min(max(len(sheet), _LEAST_BAR), _LARGEST_BAR)
        bar = colour_bar(_limits(filters.weights_OCHW, scaling)[0], kind="grey", height=height, unit="weight")
        sheet = hstack([sheet, bar], gap=16)
    width = max(sheet.shape[1], _PANEL)
    title = text_image(f"{filters.model}  {filters.layer}", size=_TITLE, width=width)
    shape = "×".join(map(str, filters.weights_OCHW.shape))
    caption = f"{filters.kind} {shape}. {description} Zero is mid grey; {_SCALING_CAPTIONS[scaling]}."
    return vstack([title, sheet, text_image(caption, size=_CAPTION, width=width)], gap=8)


def _with_numbers(sheet_HWC: Bytes8, filters: Filters, columns: int, *, pitch: tuple[int, int]) -> Bytes8:
    """Before each row the number of its first filter; above each column its channel, or what it adds to that number.

    Numbers that would touch are left out. ``pitch`` is from one row, and from one column, to the next.
    """
    is_matrix = not filters.on_colours and filters.weights_OCHW.shape[1] > 1
    out_HWC = np.pad(sheet_HWC, ((_TOP, 0), (_LEFT, 0), (0, 0)), constant_values=255)
    for row in range(0, -(-len(sheet_HWC) // pitch[0]), -(-_LINE // pitch[0])):
        number = text_image(str(row if is_matrix else row * columns), size=_SMALL, width=_NUMBER)[:_TOP]
        place_HWC = out_HWC[_TOP + row * pitch[0] :][:_TOP, :_NUMBER]
        place_HWC[:] = number[: len(place_HWC)]
    for column in range(0, columns, -(-_NUMBER // pitch[1])):
        number = text_image(str(column) if is_matrix else f"+{column}", size=_SMALL, width=_NUMBER)[:_TOP]
        place_HWC = out_HWC[:, _LEFT + column * pitch[1] :][: len(number), :_NUMBER]
        place_HWC[:] = number[:, : place_HWC.shape[1]]
    return out_HWC


def _colour_tiles(weights_OCHW: Floats, scaling: Scaling) -> tuple[list[Bytes8], int, str]:
    tiles = filter_images(weights_OCHW, scaling=scaling)
    return tiles, math.ceil(math.sqrt(len(tiles))), f"Weights over red, green and blue. {_NUMBERED}"


def _grey_tiles(weights_OCHW: Floats, scaling: Scaling) -> tuple[list[Bytes8], int, str]:
    """A row per filter and a column per channel, as many as can be read."""
    outputs, channels = weights_OCHW.shape[:2]
    if channels == 1:
        # A depthwise layer would be a single column; its filters fill a square instead.
        tiles = grey_images(weights_OCHW, most=_MOST**2, scaling=scaling)
        shown = f"{_of_all(len(tiles), outputs, 'filters')}, each over a single channel. {_NUMBERED}"
        return tiles, math.ceil(math.sqrt(len(tiles))), f"{shown} {_DEEP_CAPTION}"
    rows, columns = min(outputs, _MOST), min(channels, _MOST)
    over = _of_all(columns, channels, "channels").lower()
    shown = f"{_of_all(rows, outputs, 'filters')} (rows) over {over} (columns)."
    return grey_images(weights_OCHW, most=_MOST, scaling=scaling), columns, f"{shown} {_DEEP_CAPTION}"


def _of_all(shown: int, total: int, what: str) -> str:
    return f"All {total} {what}" if shown == total else f"The first {shown} of {total} {what}"
