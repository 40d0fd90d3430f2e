"""Networks with one logit or one per label: a logit is what every method explains, and class 0 is the other sign."""

from __future__ import annotations

from typing import Any

import nets
import numpy as np
import pytest
import torch
from torch import nn

from convlens.explain import ForwardPass, run
from convlens.models import Classifier, wrap

# Signed methods without a ReLU of their own: of the opposite logit they show the opposite.
SIGNED: dict[str, dict[str, Any]] = {
    "input_x_gradient": {},
    "hires_cam": {"relu": False},
    "deep_lift": {},
    "gradient_shap": {"samples": 4},
    "rise": {"masks": 12, "cells": 3},
}
RECTIFIED: dict[str, dict[str, Any]] = {
    "layer_cam": {},
    "grad_cam_plus_plus": {},
    "guided_grad_cam": {},
    "score_cam": {},
}


def body(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, outputs),
    )


def wrapped(outputs: int, *end: nn.Module, **options: Any) -> Classifier:
    net = nets.seeded(lambda: nn.Sequential(*body(outputs), *end)).float()
    return wrap(net, size=16, **options)


def values(classifier: Classifier, method: str, target: int, options: dict[str, Any]) -> np.ndarray:
    x_NCHW = nets.pictures(2, 3, 16, 16, dtype=torch.float32)
    return run(method, ForwardPass(classifier, x_NCHW), [target] * 2, options).values_NCHW


@pytest.mark.parametrize("method", SIGNED)
def test_class_0_of_a_binary_network_gets_the_opposite_of_class_1(method: str) -> None:
    classifier = wrapped(1, labels=["crack"])
    one, other = (values(classifier, method, target, SIGNED[method]) for target in (1, 0))
    assert np.abs(one).max() > 0
    assert nets.relative_error(other, -one) < 1e-5  # float32


@pytest.mark.parametrize("method", [*SIGNED, *RECTIFIED])
def test_labels_under_a_sigmoid_are_explained_by_their_logits(method: str) -> None:
    """The same numbers as for the network without its sigmoid."""
    options = SIGNED.get(method) or RECTIFIED.get(method) or {}
    by_sigmoid = wrapped(3, nn.Sigmoid())
    by_logit = wrapped(3, activation="sigmoid")
    assert by_sigmoid.spec.activation == "sigmoid"
    one, other = (values(classifier, method, 2, options) for classifier in (by_sigmoid, by_logit))
    assert nets.relative_error(one, other) < 1e-5  # float32
