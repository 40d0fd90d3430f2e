"""What one picture makes a layer say, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from convlens.errors import ModelError, RequestError
from convlens.instrument import layer_of, require_eval, tapped
from convlens.models import Classifier
from convlens.types import Floats, Ints


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
    kind = type(layer_of(classifier.module, layer)).__name__
    x_NCHW = torch.from_numpy(np.array(x_CHW[None], np.float32)).to(classifier.device)
    with torch.no_grad(), tapped(classifier.module, outputs=[layer]) as tap:
        tap.module(x_NCHW)
    out = tap.outputs[layer]
    if out.ndim != 4 or isinstance(layer_of(classifier.module, layer), torch.nn.Linear):
        raise RequestError(
            f"layer {layer!r} ({kind}) gives {'×'.join(map(str, out.shape[1:]))} numbers a picture and no map of "
            f"channels; the last one that does is {classifier.spec.attention_layer}",
            field="layer",
        )
    maps_CHW = out[0].float().cpu().numpy()
    if not np.isfinite(maps_CHW).all():
        raise ModelError(f"layer {layer!r} gave values that are not finite; there is nothing to rank or to draw")
    maps_CHW.flags.writeable = False
    return Activations(classifier.spec.name, classifier.spec.weights_sha256, layer, kind, maps_CHW)
