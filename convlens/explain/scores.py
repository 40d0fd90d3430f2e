"""Logits, and what is read off them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from convlens.errors import ModelError, RequestError
from convlens.types import Floats, ScoreKind


class Scorer(Protocol):
    """Turns normalised images (N, C, H, W) into logits (N, K) without gradients."""

    @property
    def name(self) -> str: ...

    def logits(self, x_NCHW: Tensor | Floats) -> Floats: ...


def require_finite(logits_NK: Floats) -> Floats:
    """The same logits; ModelError where the model gave NaN or infinity."""
    if not np.isfinite(logits_NK).all():
        raise ModelError("the model's scores are NaN or infinite for this image; its weights may be damaged")
    return logits_NK


def scores_of(logits_NK: Floats, kind: ScoreKind) -> Floats:
    """(N, K): the logits themselves, or their softmax. RequestError for another kind."""
    if kind == "logit":
        return logits_NK
    if kind != "probability":
        raise RequestError(f"no score {kind!r}; there are: logit, probability", field="options.score")
    # Softmax does not change when all logits shift; without the shift exp overflows in float32 above 88.
    shifted = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
