"""The weights of a convolution, as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from convlens.errors import RequestError, near_matches
from convlens.instrument import layer_of
from convlens.models import Classifier
from convlens.types import Floats


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
    found = layer_of(classifier.module, name)
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
