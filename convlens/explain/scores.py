"""Logits, and what is read off them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from convlens.errors import ModelError, RequestError
from convlens.types import Floats, ScoreKind


class Scorer(Protocol):
    """Whatever turns normalised pictures (N, C, H, W) into logits (N, K) without gradients."""

    @property
    def name(self) -> str: ...

    def logits(self, x_NCHW: Tensor | Floats) -> Floats: ...


def finite(logits_NK: Floats) -> Floats:
    """The logits, or ModelError where the model gave NaN or infinity."""
    if not np.isfinite(logits_NK).all():
        raise ModelError("the model's scores are NaN or infinite for this picture; its weights may be damaged")
    return logits_NK


def scores_of(logits_NK: Floats, kind: ScoreKind) -> Floats:
    """Logits as they are, or their softmax."""
    if kind == "logit":
        return logits_NK
    if kind != "probability":
        raise RequestError(f"no score {kind!r}; there are: logit, probability", field="options.score")
    shifted = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
