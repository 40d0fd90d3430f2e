"""Logits, and what is read off them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from convlens.errors import ModelError, RequestError
from convlens.types import Activation, Floats, ScoreKind


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


def scores_of(logits_NK: Floats, kind: ScoreKind, activation: Activation = "softmax") -> Floats:
    """(N, K): the logits themselves, or the probabilities that they mean. RequestError for another kind."""
    if kind == "logit":
        return logits_NK
    if kind != "probability":
        raise RequestError(f"no score {kind!r}; there are: logit, probability", field="options.score")
    return np.asarray(probabilities(torch.as_tensor(logits_NK), activation).numpy())


def probabilities(logits_NK: Tensor, activation: Activation) -> Tensor:
    """(N, K): over all classes by softmax, each by itself by sigmoid, or the logits as they are."""
    if activation == "softmax":
        return logits_NK.softmax(1)
    return logits_NK.sigmoid() if activation == "sigmoid" else logits_NK
