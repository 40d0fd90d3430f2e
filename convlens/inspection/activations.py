"""A layer's activations for one image, channel by channel, and their drawings.

``activations`` computes them; the ``draw_*`` functions show all channels, the strongest, one, and one over the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from convlens.errors import ModelError, RequestError
from convlens.instrument import arithmetic, find_layer, require_eval, tapped
from convlens.models import Classifier
from convlens.types import Bytes8, Floats, Ints
from convlens.visualization import colour_bar, diverging, overlay, resize_map, scale, sequential
from convlens.visualization.colourbar import BarKind
from convlens.visualization.layout import add_frame, add_margin, enlarge, hstack, text_image, vstack

_SHEET, _TILE, _SIDE = 960, 150, 448  # pixels: a sheet's width, a ranked tile's side, an enlarged channel's side
_SMALL, _CAPTION = 11, 14  # letters
_COLUMNS = 6  # of ranked tiles
_ROW_NUMBERS = 44  # pixels for the number of each row's first channel
_LEAST_BAR, _LARGEST_BAR = 96, 320  # pixels: heights of colour bars


# ---- numbers


@dataclass(frozen=True)
class Activations:
    """One image's output of a layer, before whatever follows it: ``maps_CHW``, float32, one map per channel."""

    model: str
    weights_sha256: str
    layer: str
    kind: str
    maps_CHW: Floats

    @cached_property
    def ranking(self) -> Ints:
        """All channels, the one with the largest activation first; channels with equal ones in their own order."""
        return np.argsort(-self.maps_CHW.max(axis=(1, 2)), kind="stable")

    @property
    def signed(self) -> bool:
        """Whether any value is negative, so that a drawing needs a colour for 0."""
        return bool((self.maps_CHW < 0).any())

    def peak(self, channel: int) -> tuple[float, int, int]:
        """The channel's largest value, its row and its column; the first of equal ones."""
        map_HW = self.channel(channel)
        y, x = divmod(int(map_HW.argmax()), map_HW.shape[1])
        return float(map_HW[y, x]), y, x

    def channel(self, channel: int) -> Floats:
        """The channel's map (H, W); RequestError for a channel that does not exist."""
        if not 0 <= channel < len(self.maps_CHW):
            raise RequestError(
                f"layer {self.layer!r} has no channel {channel}; there are 0..{len(self.maps_CHW) - 1}", field="channel"
            )
        return np.asarray(self.maps_CHW[channel])


def activations(classifier: Classifier, x_CHW: Floats, *, layer: str) -> Activations:
    """Run one image, prepared as ``image.prepare`` does, and keep the layer's output.

    RequestError for an unknown layer (with near matches), one that did not run, or one whose output is no map with
    channels first; ModelError where values are not finite.
    """
    require_eval(classifier.module)
    kind = type(find_layer(classifier.module, layer)).__name__
    x_NCHW = torch.from_numpy(np.array(x_CHW[None], np.float32)).to(classifier.device)
    # The tap clones what it catches: an in-place ReLU behind the layer would overwrite the negative values.
    exactly = arithmetic(classifier.precision, classifier.device)
    with torch.no_grad(), exactly, tapped(classifier.module, outputs=[layer]) as tap:
        tap.module(x_NCHW)
    out = tap.outputs[layer]
    # A linear layer inside ConvNeXt gives four axes as well, but with channels last.
    if out.ndim != 4 or isinstance(find_layer(classifier.module, layer), torch.nn.Linear):
        raise RequestError(
            f"layer {layer!r} ({kind}) gives {'×'.join(map(str, out.shape[1:]))} numbers per image and no map of "
            f"channels; the last one that does is {classifier.spec.gradcam_layer}",
            field="layer",
        )
    maps_CHW = out[0].float().cpu().numpy()
    if not np.isfinite(maps_CHW).all():
        raise ModelError(f"layer {layer!r} gave values that are not finite; there is nothing to rank or to draw")
    maps_CHW.flags.writeable = False
    return Activations(classifier.spec.name, classifier.spec.weights_sha256, layer, kind, maps_CHW)


# ---- drawing


def draw_all_channels(maps: Activations) -> Bytes8:
    """Every channel in order, to one scale; before each row the number of its first channel."""
    count, _, width = maps.maps_CHW.shape
    columns = math.ceil(math.sqrt(count))
    factor = max(1, _SHEET // (columns * (width + 1)))
    limit = _shared_limit(maps)
    tiles = [add_frame(enlarge(_draw_map(maps, map_HW, limit), factor)) for map_HW in maps.maps_CHW]
    rows = []
    for first in range(0, count, columns):
        number = text_image(str(first), size=_SMALL, width=_ROW_NUMBERS)
        rows.append(hstack([number, hstack(tiles[first : first + columns], gap=0)], gap=0))
    return _with_caption(_with_bar(vstack(rows), maps, limit), maps, f"all {count} channels in order")


def draw_strongest_channels(maps: Activations, *, most: int = 24) -> Bytes8:
    """The channels with the largest values, largest first, each with its number and that value; one scale for all."""
    shown = maps.ranking[:most]
    factor = max(1, _TILE // max(maps.maps_CHW.shape[1:]))
    limit = _shared_limit(maps)
    tiles = []
    for channel in map(int, shown):
        tile = add_frame(enlarge(_draw_map(maps, maps.maps_CHW[channel], limit), factor))
        heading = text_image(f"{channel}: {maps.peak(channel)[0]:.4g}", size=_CAPTION, width=max(tile.shape[1], 80))
        tiles.append(vstack([heading, tile]))
    rows = [hstack(tiles[n : n + _COLUMNS], gap=8) for n in range(0, len(tiles), _COLUMNS)]
    what = f"the {len(shown)} of {len(maps.maps_CHW)} channels with the largest values, largest first"
    return _with_caption(_with_bar(vstack(rows, gap=8), maps, limit), maps, what)


def draw_channel(maps: Activations, channel: int) -> Bytes8:
    """One channel enlarged, a square per unit, to its own scale. RequestError for a channel that does not exist."""
    map_HW = maps.channel(channel)
    limit = scale(map_HW)
    image_HWC = add_frame(enlarge(_draw_map(maps, map_HW, limit), max(1, _SIDE // max(map_HW.shape))))
    return _with_caption(_with_bar(image_HWC, maps, limit), maps, f"channel {channel}, drawn to its own scale")


def draw_overlay(maps: Activations, channel: int, view_HWC: Bytes8) -> Bytes8:
    """One channel laid over the network's input, interpolated between the centres of units, to its own scale.

    RequestError for a channel that does not exist.
    """
    map_HW = resize_map(maps.channel(channel), *view_HWC.shape[:2])
    return overlay(view_HWC, map_HW, signed=maps.signed)


def _shared_limit(maps: Activations) -> float:
    """The value drawn at full strength where all channels share a scale."""
    # scale takes the 99.9th percentile of absolute values, so that one outlier does not leave all others faint.
    return scale(maps.maps_CHW.reshape(len(maps.maps_CHW), -1))


def _draw_map(maps: Activations, map_HW: Floats, limit: float) -> Bytes8:
    return diverging(map_HW, limit=limit) if maps.signed else sequential(map_HW, limit=limit)


def _with_bar(image_HWC: Bytes8, maps: Activations, limit: float) -> Bytes8:
    height = min(max(len(image_HWC), _LEAST_BAR), _LARGEST_BAR)
    kind: BarKind = "diverging" if maps.signed else "sequential"
    return hstack([image_HWC, colour_bar(limit, kind=kind, height=height, unit="activation")], gap=16)


def _with_caption(image_HWC: Bytes8, maps: Activations, what: str) -> Bytes8:
    colours = "blue below 0, white at 0, red above" if maps.signed else "black at 0, brighter above"
    shape = "×".join(map(str, maps.maps_CHW.shape))
    text = f"{maps.model}  {maps.layer} ({maps.kind}, {shape}): {what}; {colours}."
    caption = text_image(text, size=_CAPTION, width=max(image_HWC.shape[1], _SIDE))
    return add_margin(vstack([image_HWC, caption], gap=8), margin=12)
