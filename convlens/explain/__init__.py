"""One explanation method a file, in a registry; every one takes a Forward and a target per row.

forward = ForwardPass(classifier, x_NCHW)
attribution = run("saliency", forward)                # of the predicted classes
attribution = run("occlusion", forward, [285, 967], {"window": 48})
"""

from __future__ import annotations

from convlens.explain.base import Forward
from convlens.explain.forward import ForwardPass, sweeps_of
from convlens.explain.graphs import GraphForward, GraphModel
from convlens.explain.registry import Method, explainer, get, methods, run
from convlens.explain.scores import Scorer

__all__ = [
    "Forward",
    "ForwardPass",
    "GraphForward",
    "GraphModel",
    "Method",
    "Scorer",
    "explainer",
    "get",
    "methods",
    "run",
    "sweeps_of",
]
