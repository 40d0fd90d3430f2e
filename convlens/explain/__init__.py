"""One explanation method a file, in a registry; every one takes a Forward and a target per row.

forward = ForwardPass(classifier, x_NCHW)
attribution = run("saliency", forward)                # of the predicted classes
attribution = run("occlusion", forward, [285, 967], {"window": 48})
attribution = run_neurons("guided_backprop", forward, [Neuron("layer3", 12), Neuron("layer3", 7, y=4, x=5)])
"""

from __future__ import annotations

from convlens.explain.base import Forward
from convlens.explain.forward import ForwardPass, sweeps_of
from convlens.explain.graphs import GraphForward, GraphModel
from convlens.explain.neuron import NeuronPass, require_neurons, run_neurons
from convlens.explain.registry import Method, explainer, get, methods, run
from convlens.explain.scores import Scorer

__all__ = [
    "Forward",
    "ForwardPass",
    "GraphForward",
    "GraphModel",
    "Method",
    "NeuronPass",
    "Scorer",
    "explainer",
    "get",
    "methods",
    "require_neurons",
    "run",
    "run_neurons",
    "sweeps_of",
]
