"""Adebayo et al. 2018 (arXiv:1810.03292): which maps change when the trained classifier is replaced by noise.

Measured here on three photographs: rank correlation of the magnitudes .31–.50 for saliency, .99–1.00 for guided
backprop and deconvnet. The latter two are known to say little about the class, which their descriptions tell the user.
"""

from __future__ import annotations

import copy
import dataclasses

import nets
import numpy as np
import pytest
import torch

from convlens.explain import ForwardPass, get, run, run_neurons
from convlens.models import Classifier, load
from convlens.types import Neuron

TIGER_CAT = 282


@pytest.fixture(scope="module")
def trained() -> ForwardPass:
    classifier = load("packaged:efficientnet_lite0", device="cpu")
    return ForwardPass(classifier, nets.photograph("chelsea.png", classifier.spec))


@pytest.fixture(scope="module", params=[0, 1])
def randomised(request: pytest.FixtureRequest, trained: ForwardPass) -> ForwardPass:
    """The same but for the last layer, whose weights are noise of the trained ones' spread."""
    module = copy.deepcopy(trained.classifier.module)
    weight = module.classifier.weight.data
    weight.normal_(0.0, float(weight.std()), generator=torch.Generator().manual_seed(request.param))
    classifier: Classifier = dataclasses.replace(trained.classifier, module=module)
    return ForwardPass(classifier, trained.x_NCHW)


def likeness(method: str, one: ForwardPass, other: ForwardPass) -> float:
    """Spearman's rank correlation between two maps: magnitudes of gradients, Grad-CAM with its sign."""
    maps = []
    for forward in (one, other):
        options = {"relu": False} if method == "grad_cam" else {}
        values = run(method, forward, [TIGER_CAT], options).values_NCHW[0]
        map_HW = values[0] if method == "grad_cam" else np.abs(values).max(0)
        maps.append(map_HW.ravel().argsort().argsort())
    return float(np.corrcoef(*maps)[0, 1])


@pytest.mark.parametrize("method", ["saliency", "grad_cam"])
def test_without_the_trained_classifier_the_map_is_another(
    trained: ForwardPass, randomised: ForwardPass, method: str
) -> None:
    assert likeness(method, trained, randomised) < 0.5


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_without_the_trained_classifier_the_map_hardly_changes(
    trained: ForwardPass, randomised: ForwardPass, method: str
) -> None:
    assert likeness(method, trained, randomised) > 0.95


def test_the_description_of_guided_backprop_says_so() -> None:
    assert "randomising the top layers hardly changes it" in get("guided_backprop").does_not_show


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_maps_that_hardly_change_say_so_in_their_warnings(trained: ForwardPass, method: str) -> None:
    *_, warning = run(method, trained).meta.warnings
    assert warning.startswith("such maps hardly change when the network's top layers get random weights")


def test_maps_that_change_need_no_warning(trained: ForwardPass) -> None:
    assert run("saliency", trained).meta.warnings == run("grad_cam", trained).meta.warnings == ()


def test_a_neuron_s_map_bears_no_warning_about_classes(trained: ForwardPass) -> None:
    layer = trained.spec.gradcam_layer
    assert run_neurons("guided_backprop", trained, [Neuron(layer, 0)]).meta.warnings == ()
