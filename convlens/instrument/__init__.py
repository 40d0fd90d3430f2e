"""Every temporary change to a model: ReLU rules, layer hooks, private randomness. Nothing else may change one.

All of it is local to the calling thread, or works on a private tree of modules that shares the weights: the user's
module never gets a hook, so threads cannot see each other and an exception has nothing to clean up. Only ``precision``
sets what belongs to the whole process, torch's flags, and puts them back.
"""

from __future__ import annotations

from convlens.instrument.folding import Convolution, FoldedBatchNorms, WatchedConvolutions
from convlens.instrument.function_modes import AveragePooling, NativeDepthwise, fast_convolutions, private_rng
from convlens.instrument.layer_hooks import OUTPUT, PartialForward, Tap, find_layer, private_tree, require_eval, tapped
from convlens.instrument.memory_format import copy_of, find_memory_format, in_format_of, memory_format
from convlens.instrument.precision import (
    arithmetic,
    arithmetic_of,
    float32_flags,
    precision_was_chosen,
    require_precision,
    use_precision,
)
from convlens.instrument.relu_guard import graph_nodes, remembers_places, require_relu_network
from convlens.instrument.relu_rules import RULES, RedirectedRelus, ReluRule, RuledRelus
from convlens.instrument.rescale_rules import RescaledSteps, require_rescaled_network

__all__ = [
    "OUTPUT",
    "RULES",
    "AveragePooling",
    "Convolution",
    "FoldedBatchNorms",
    "NativeDepthwise",
    "PartialForward",
    "RedirectedRelus",
    "ReluRule",
    "RescaledSteps",
    "RuledRelus",
    "Tap",
    "WatchedConvolutions",
    "arithmetic",
    "arithmetic_of",
    "copy_of",
    "fast_convolutions",
    "find_layer",
    "find_memory_format",
    "float32_flags",
    "graph_nodes",
    "in_format_of",
    "memory_format",
    "precision_was_chosen",
    "private_rng",
    "private_tree",
    "remembers_places",
    "require_eval",
    "require_precision",
    "require_relu_network",
    "require_rescaled_network",
    "tapped",
    "use_precision",
]
