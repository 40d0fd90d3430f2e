"""The gradient explanations on real architectures: against slow references, and against captum where it is right."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator

import nets
import numpy as np
import pytest
import reference_gradients
import torch
from torch import Tensor

from convlens.errors import UnsupportedModelError
from convlens.explain import ForwardPass, run
from convlens.models import Classifier, load
from convlens.types import Attribution

pytestmark = pytest.mark.slow

RULES = {"saliency": "plain", "guided_backprop": "guided", "deconvnet": "deconvnet"}
DEFAULT = "packaged:efficientnet_lite0"
# Name -> the side of the pictures: small, but such that no layer is left without space.
ARCHITECTURES = {
    "torchvision:alexnet:untrained": 64,
    "torchvision:vgg11:untrained": 32,
    "torchvision:resnet18:untrained": 40,
    "torchvision:resnext50_32x4d:untrained": 40,
    "torchvision:densenet121:untrained": 40,
    "torchvision:googlenet:untrained": 40,
    "torchvision:inception_v3:untrained": 80,
    "torchvision:squeezenet1_0:untrained": 40,
    "torchvision:mobilenet_v2:untrained": 40,
    "torchvision:shufflenet_v2_x1_0:untrained": 40,
    "torchvision:mnasnet1_0:untrained": 40,
    "torchvision:regnet_x_400mf:untrained": 40,
    DEFAULT: 64,
}
TARGETS = [3, 7]


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    classifier: Classifier
    x_NCHW: Tensor
    reference: reference_gradients.ReferenceNetwork
    forward: ForwardPass

    @property
    def short_name(self) -> str:
        return self.name.split(":")[1]

    @functools.cached_property
    def results(self) -> dict[str, Attribution]:
        """What each method gives, computed once for all tests."""
        return {method: run(method, self.forward, TARGETS) for method in RULES}


def case_of(name: str, size: int) -> Case:
    loaded = load(name, device="cpu")
    module = loaded.module.double() if name == DEFAULT else nets.perturbed(loaded.module)
    classifier = dataclasses.replace(loaded, module=module)
    x_NCHW = nets.pictures(len(TARGETS), 3, size, size)
    reference = reference_gradients.ReferenceNetwork(module, x_NCHW)
    return Case(name, classifier, x_NCHW, reference, ForwardPass(classifier, x_NCHW))


@pytest.fixture(scope="module", params=ARCHITECTURES.items(), ids=[name.split(":")[1] for name in ARCHITECTURES])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield case_of(*request.param)


@pytest.mark.parametrize("method", RULES)
def test_equals_the_rule_written_into_each_relu_by_hand(case: Case, method: str) -> None:
    result = case.results[method]
    expected = case.reference.gradient(RULES[method], TARGETS)
    assert expected.abs().max() > 0
    # float64 rounding along a hundred layers; both add in another order.
    assert nets.relative_error(result.values_NCHW, expected) < 1e-10


def test_every_relu_call_that_is_made_is_ruled(case: Case) -> None:
    meta = case.results["guided_backprop"].meta
    made = reference_gradients.relu_calls(case.classifier.module, case.x_NCHW)
    assert made == case.reference.relu_calls > 0
    assert (meta.relu_calls_seen, meta.relu_calls_ruled) == (made, made)


# Where captum, which hooks nn.ReLU modules and nothing else, goes wrong without a word: it meets only functions or
# ReLU6 and returns the plain gradient, or (DenseNet) functions and modules mixed. Elsewhere it is right.
CAPTUM_IS_PLAIN = ("googlenet", "inception_v3", "mobilenet_v2", "efficientnet_lite0")
CAPTUM_IS_OFF = ("densenet121",)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
def test_equals_captum_where_captum_is_right(case: Case) -> None:
    for method, captums in captum_results(case).items():
        error = nets.relative_error(captums, case.results[method].values_NCHW)
        if method != "saliency" and case.short_name in CAPTUM_IS_PLAIN + CAPTUM_IS_OFF:
            assert error > 0.1
        else:
            assert error < 1e-6
        if case.short_name in CAPTUM_IS_PLAIN:
            assert nets.relative_error(captums, case.reference.gradient("plain", TARGETS)) < 1e-10


def captum_results(case: Case) -> dict[str, Tensor]:
    from captum.attr import Deconvolution, GuidedBackprop, Saliency

    module = case.classifier.module
    x = case.x_NCHW.clone().requires_grad_()
    results = {
        "saliency": Saliency(module).attribute(x, target=TARGETS, abs=False),
        "guided_backprop": GuidedBackprop(module).attribute(x, target=TARGETS),
        "deconvnet": Deconvolution(module).attribute(x, target=TARGETS),
    }
    return {method: values.detach() for method, values in results.items()}


REFUSED = {"efficientnet_b0": "SiLU", "convnext_tiny": "GELU", "mobilenet_v3_small": "Hardswish"}


@pytest.fixture(scope="module", params=REFUSED)
def refused(request: pytest.FixtureRequest) -> tuple[str, Classifier]:
    loaded = load(f"torchvision:{request.param}:untrained", device="cpu")
    return request.param, dataclasses.replace(loaded, module=nets.perturbed(loaded.module))


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_a_network_without_a_relu_rule_is_refused_by_the_name_of_its_activation(
    refused: tuple[str, Classifier], method: str
) -> None:
    name, classifier = refused
    with pytest.raises(UnsupportedModelError, match=rf"{method}.*{REFUSED[name]}") as caught:
        run(method, ForwardPass(classifier, nets.pictures(1, 3, 64, 64)))
    assert caught.value.status == 422


def test_saliency_of_a_network_without_a_relu_rule_is_autograds(refused: tuple[str, Classifier]) -> None:
    _, classifier = refused
    x = nets.pictures(2, 3, 64, 64)
    result = run("saliency", ForwardPass(classifier, x), TARGETS).values_NCHW
    assert nets.relative_error(result, reference_gradients.plain_gradient(classifier.module, x, TARGETS)) < 1e-10
    assert np.abs(result).max() > 0


def test_float32_and_channels_last_change_only_the_last_digits() -> None:
    case = case_of("torchvision:resnet18:untrained", 64)
    single = dataclasses.replace(case.classifier, module=copy.deepcopy(case.classifier.module).float())
    forward = ForwardPass(single, case.x_NCHW.numpy())
    assert forward.x_NCHW.dtype == torch.float32
    for method, rule in RULES.items():
        result, expected = run(method, forward, TARGETS).values_NCHW, case.reference.gradient(rule, TARGETS).numpy()
        # A unit within rounding of zero may switch: compare all but the worst thousandth.
        error = np.quantile(np.abs(result - expected), 0.999) / np.abs(expected).max()
        assert error < 1e-3
