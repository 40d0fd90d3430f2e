"""Every temporary change to a model: ReLU rules, layer taps, private randomness. Nothing else may touch one.

All of it is local to the calling thread, or works on a private tree of modules that shares the weights: the user's
module never gets a hook, so threads cannot see each other and an exception has nothing to clean up.
"""

from __future__ import annotations

from convlens.instrument.guard import refuse_unruled
from convlens.instrument.modules import layer_of, private_tree, require_eval
from convlens.instrument.pooling import AveragePools
from convlens.instrument.randomness import own_randomness
from convlens.instrument.redirect import RedirectedRelus
from convlens.instrument.relu import RULES, ReluRule, RuledRelus
from convlens.instrument.stopping import UpTo
from convlens.instrument.taps import Tap, tapped

__all__ = [
    "RULES",
    "AveragePools",
    "RedirectedRelus",
    "ReluRule",
    "RuledRelus",
    "Tap",
    "UpTo",
    "layer_of",
    "own_randomness",
    "private_tree",
    "refuse_unruled",
    "require_eval",
    "tapped",
]
