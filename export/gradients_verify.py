"""Does a graph give the gradient that torch gives? Compared where a gradient in float32 can be compared.

A gradient jumps where a ReLU's input passes zero. Of a network's million units some lie within rounding of it, switch
in one float32 calculation and not in another, and then move the pixels before them, in torch by as much as in ONNX
Runtime: by 1e-2 of the largest pixel, on one picture in three. So the reference is the eager explanation in float64,
and for every batch size there must be one picture in which nothing switched: there every single pixel counts. In all
pictures a quarter of the pixels must agree as well: a unit that switches leaves that many, but no row does that got
another's target.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np

from convlens.errors import ModelError, UnsupportedModelError
from convlens.explain import ForwardPass
from convlens.models import Classifier
from convlens.runtime.contract import GradientKind
from convlens.types import Floats, Ints
from export.gradients import RULES

# Batches of noise that may be drawn to find a picture in which no ReLU switches.
TRIES = 10


def in_double(classifier: Classifier) -> Classifier:
    """The same network in float64; the user's own is left alone."""
    return dataclasses.replace(classifier, module=copy.deepcopy(classifier.module).double())


def eager(double: Classifier, kind: GradientKind, x_NCHW: Floats, target_N: Ints) -> tuple[Floats, Floats]:
    """The explanation without a graph, and the logits."""
    forward = ForwardPass(double, x_NCHW.astype(np.float64))
    try:
        gradient_NCHW = forward.gradient(RULES[kind], target_N, method=kind).cpu().numpy()
    except RuntimeError as error:
        raise UnsupportedModelError(f"gradients are compared in float64, and there this fails: {error}") from error
    if not np.isfinite(gradient_NCHW).all():
        raise ModelError("torch's gradient is NaN or infinite for noise pictures; the weights may be damaged")
    return gradient_NCHW, forward.logits_NK


def gradient_off(expected_NCHW: Floats, found_NCHW: Floats) -> float:
    """The largest difference in the row that agrees best or, if that is more, the lower quartile of the worst row.

    Each is relative to the row's largest value; rows without any gradient, which prove little, count only where there
    are no others. Infinity where the graph gives NaN or infinity.
    """
    if not np.isfinite(found_NCHW).all():
        return float("inf")
    expected_NP, found_NP = (each.reshape(len(each), -1) for each in (expected_NCHW, found_NCHW))
    largest_N = np.abs(expected_NP).max(axis=1)
    alive_N = largest_N > 0
    off_NP = np.abs(expected_NP - found_NP) / np.where(alive_N, largest_N, 1.0)[:, None]
    proving_N = alive_N if alive_N.any() else ~alive_N
    return max(float(off_NP[proving_N].max(axis=1).min()), float(np.quantile(off_NP, 0.25, axis=1).max()))
