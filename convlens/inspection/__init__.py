"""Looking inside a network: receptive fields, filters, activations. Values here; pictures of them in ``drawing``.

field = receptive_field(classifier, "layer3.0.conv1")      # every unit's rectangle of pixels
filters = layer_filters(classifier)                        # the first convolution's weights
maps = activations(classifier, x_CHW, layer="layer1")      # what a picture makes a layer say
"""

from __future__ import annotations

from convlens.inspection.activations import Activations, activations
from convlens.inspection.filters import Filters, layer_filters
from convlens.inspection.receptive_field import Box, Field, receptive_field, receptive_fields

__all__ = [
    "Activations",
    "Box",
    "Field",
    "Filters",
    "activations",
    "layer_filters",
    "receptive_field",
    "receptive_fields",
]
