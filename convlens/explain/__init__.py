"""One explanation method a file, in a registry; every one takes a ForwardPass and a target per row.

forward = ForwardPass(classifier, x_NCHW)
attribution = run("saliency", forward)                # of the predicted classes
attribution = run("occlusion", forward, [285, 967], {"window": 48})
"""

from __future__ import annotations

from convlens.explain.forward import ForwardPass, Scorer
from convlens.explain.registry import Method, explainer, get, methods, run

__all__ = ["ForwardPass", "Method", "Scorer", "explainer", "get", "methods", "run"]
