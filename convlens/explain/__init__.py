"""Explanation methods, one per file in ``methods/``; each takes a Forward and one target per row.

forward = ForwardPass(classifier, x_NCHW)
attribution = run("saliency", forward)                # of the predicted classes
attribution = run("occlusion", forward, [285, 967], {"window": 48})
attribution = run_neurons("guided_backprop", forward, [Neuron("layer3", 12), Neuron("layer3", 7, y=4, x=5)])
"""

from __future__ import annotations

from convlens.explain.forward import Forward
from convlens.explain.network_sweeps import torch_sweeps
from convlens.explain.neurons import NeuronPass, require_neurons, run_neurons
from convlens.explain.onnx_forward import GraphForward, GraphModel
from convlens.explain.registry import Method, available_methods, explainer, get, run
from convlens.explain.scores import Scorer
from convlens.explain.torch_forward import ForwardPass
from convlens.types import Neuron

__all__ = [
    "Forward",
    "ForwardPass",
    "GraphForward",
    "GraphModel",
    "Method",
    "Neuron",
    "NeuronPass",
    "Scorer",
    "available_methods",
    "explainer",
    "get",
    "require_neurons",
    "run",
    "run_neurons",
    "torch_sweeps",
]
