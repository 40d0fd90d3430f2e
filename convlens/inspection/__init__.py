"""What is inside a network: receptive fields, filters, activations, patches; each file holds numbers and their drawing.

field = receptive_field(classifier, "layer3.0.conv1")      # every unit's rectangle of pixels
filters = layer_filters(classifier)                        # the first convolution's weights
maps = activations(classifier, x_CHW, layer="layer1")      # a layer's output for one image
"""

from __future__ import annotations

from convlens.inspection.activations import Activations, activations
from convlens.inspection.filters import Filters, layer_filters
from convlens.inspection.receptive_field import Box, ReceptiveField, receptive_field, receptive_fields

__all__ = [
    "Activations",
    "Box",
    "Filters",
    "ReceptiveField",
    "activations",
    "layer_filters",
    "receptive_field",
    "receptive_fields",
]
