"""What one picture makes a layer say, channel by channel.

Pictures of activations: all channels, the strongest, and one over the photograph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from convlens.errors import ModelError, RequestError
from convlens.instrument import find_layer, require_eval, tapped
from convlens.models import Classifier
from convlens.types import Bytes8, Floats, Ints
from convlens.visualization import diverging, overlay, resize_map, scale, sequential
from convlens.visualization.layout import add_margin, enlarge, hstack, text_image, vstack


@dataclass(frozen=True)
class Activations:
    """A layer's output for one picture, as the layer gave it: ``maps_CHW``, float32, one map a channel.

    Taken before whatever comes behind the layer, be it a ReLU that works in place.
    """

    model: str
    weights_sha256: str
    layer: str
    kind: str
    maps_CHW: Floats

    @cached_property
    def ranking(self) -> Ints:
        """All channels, the one with the largest value anywhere first; equals in their own order."""
        return np.argsort(-self.maps_CHW.max(axis=(1, 2)), kind="stable")

    @property
    def signed(self) -> bool:
        """Whether a value is below 0: then 0 needs a colour of its own."""
        return bool((self.maps_CHW < 0).any())

    def peak(self, channel: int) -> tuple[float, int, int]:
        """The channel's largest value, and its row and column; the first one of equals."""
        map_HW = self.channel(channel)
        y, x = divmod(int(map_HW.argmax()), map_HW.shape[1])
        return float(map_HW[y, x]), y, x

    def channel(self, channel: int) -> Floats:
        """(H, W); RequestError for a channel that there is not."""
        if not 0 <= channel < len(self.maps_CHW):
            raise RequestError(
                f"layer {self.layer!r} has no channel {channel}; there are 0..{len(self.maps_CHW) - 1}", field="channel"
            )
        return np.asarray(self.maps_CHW[channel])


def activations(classifier: Classifier, x_CHW: Floats, *, layer: str) -> Activations:
    """Run one picture, prepared as ``image.prepare`` does, and keep what the layer gave.

    RequestError for a layer that there is not (with near matches), that did not run, or whose output is no map of
    channels first; ModelError where it gave values that are not finite.
    """
    require_eval(classifier.module)
    kind = type(find_layer(classifier.module, layer)).__name__
    x_NCHW = torch.from_numpy(np.array(x_CHW[None], np.float32)).to(classifier.device)
    with torch.no_grad(), tapped(classifier.module, outputs=[layer]) as tap:
        tap.module(x_NCHW)
    out = tap.outputs[layer]
    if out.ndim != 4 or isinstance(find_layer(classifier.module, layer), torch.nn.Linear):
        raise RequestError(
            f"layer {layer!r} ({kind}) gives {'×'.join(map(str, out.shape[1:]))} numbers a picture and no map of "
            f"channels; the last one that does is {classifier.spec.gradcam_layer}",
            field="layer",
        )
    maps_CHW = out[0].float().cpu().numpy()
    if not np.isfinite(maps_CHW).all():
        raise ModelError(f"layer {layer!r} gave values that are not finite; there is nothing to rank or to draw")
    maps_CHW.flags.writeable = False
    return Activations(classifier.spec.name, classifier.spec.weights_sha256, layer, kind, maps_CHW)


_SHEET, _TILE, _SIDE = 960, 150, 448  # pixels: a sheet's width, a ranked tile's side, an enlarged channel's side
_SMALL, _CAPTION = 11, 14
_NUMBERS = 44  # pixels for the number of each row's first channel


def all_channels(found: Activations) -> Bytes8:
    """Every channel in order, a number before each row: that of its first channel. All are drawn to one scale."""
    count, _, width = found.maps_CHW.shape
    columns = math.ceil(math.sqrt(count))
    factor = max(1, _SHEET // (columns * (width + 1)))
    tiles = [enlarge(_drawn(found, map_HW, limit_of(found)), factor) for map_HW in found.maps_CHW]
    rows = []
    for first in range(0, count, columns):
        number = text_image(str(first), size=_SMALL, width=_NUMBERS)
        rows.append(hstack([number, hstack(tiles[first : first + columns], gap=2)], gap=0))
    return _with_caption(vstack(rows, gap=2), found, f"all {count} channels in order")


def strongest_channels(found: Activations, *, most: int = 24, columns: int = 6) -> Bytes8:
    """The channels with the largest values, largest first, each with its number and that value; one scale for all."""
    shown = found.ranking[:most]
    factor = max(1, _TILE // max(found.maps_CHW.shape[1:]))
    tiles = []
    for channel in map(int, shown):
        tile = enlarge(_drawn(found, found.maps_CHW[channel], limit_of(found)), factor)
        words = text_image(f"{channel}: {found.peak(channel)[0]:.4g}", size=_CAPTION, width=max(tile.shape[1], 80))
        tiles.append(vstack([words, tile]))
    rows = [hstack(tiles[n : n + columns], gap=8) for n in range(0, len(tiles), columns)]
    what = f"the {len(shown)} of {len(found.maps_CHW)} channels with the largest values, largest first"
    return _with_caption(vstack(rows, gap=8), found, what)


def one_channel(found: Activations, channel: int) -> Bytes8:
    """One channel enlarged, a square for each unit, drawn to its own scale. RequestError for one that there is not."""
    map_HW = found.channel(channel)
    picture = enlarge(_drawn(found, map_HW, scale(map_HW)), max(1, _SIDE // max(map_HW.shape)))
    return _with_caption(picture, found, f"channel {channel}, drawn to its own scale")


def over_picture(found: Activations, channel: int, view_HWC: Bytes8) -> Bytes8:
    """One channel laid over what the network saw, stretched to it between the centres of units, to its own scale.

    RequestError for a channel that there is not.
    """
    map_HW = resize_map(found.channel(channel), *view_HWC.shape[:2])
    return overlay(view_HWC, map_HW, signed=found.signed)


def limit_of(found: Activations) -> float:
    """The value drawn at full strength where all channels share a scale: the 99.9th percentile of absolute values."""
    return scale(found.maps_CHW.reshape(len(found.maps_CHW), -1))


def _drawn(found: Activations, map_HW: Floats, limit: float) -> Bytes8:
    return diverging(map_HW, limit=limit) if found.signed else sequential(map_HW, limit=limit)


def _with_caption(picture: Bytes8, found: Activations, what: str) -> Bytes8:
    colours = "blue below 0, white at 0, red above" if found.signed else "black at 0, brighter above"
    shape = "×".join(map(str, found.maps_CHW.shape))
    words = f"{found.model}  {found.layer} ({found.kind}, {shape}): {what}; {colours}."
    return add_margin(
        vstack([picture, text_image(words, size=_CAPTION, width=max(picture.shape[1], _SIDE))], gap=8), margin=12
    )
