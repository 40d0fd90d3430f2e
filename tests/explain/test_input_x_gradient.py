"""Input × gradient against captum, a linear network and a sum by hand."""

from __future__ import annotations

import copy

import nets
import numpy as np
import pytest
import torch
from captum import attr

from convlens.explain import ForwardPass, run, run_neurons
from convlens.types import Neuron

TARGETS = [0, 1, 3]


@pytest.fixture(scope="module")
def mixed() -> ForwardPass:
    return ForwardPass(nets.classifier(nets.seeded(nets.Mixed), classes=4), nets.pictures(3, 3, 8, 8))


def test_the_values_are_captum_s(mixed: ForwardPass) -> None:
    x_NCHW = mixed.x_NCHW.clone().requires_grad_()
    module = copy.deepcopy(mixed.classifier.module)
    expected = attr.InputXGradient(module).attribute(x_NCHW, target=torch.tensor(TARGETS)).detach()
    assert nets.relative_error(run("input_x_gradient", mixed, TARGETS).values_NCHW, expected) < 1e-12


@pytest.mark.parametrize(
    ("target", "expected"),
    [(0, (0.0, 2.0)), (1, (0.0, -2.0))],  # gradients (0, 2) and (0, −2), of the image (2, 1)
)
def test_the_values_are_those_added_up_by_hand(target: int, expected: tuple[float, float]) -> None:
    forward = ForwardPass(nets.classifier(nets.ByHand(torch.relu), classes=2, crop=1), nets.pair(2.0, 1.0))
    assert tuple(run("input_x_gradient", forward, [target]).values_NCHW.flatten().tolist()) == expected


def test_the_shares_of_a_linear_net_add_up_to_the_logit_less_its_bias() -> None:
    net = nets.seeded(nets.Linear)
    result = run("input_x_gradient", ForwardPass(nets.classifier(net, classes=3), nets.pictures(2, 3, 4, 4)), [2, 0])
    expected = result.score_N - net.head.bias.detach().numpy()[[2, 0]]
    np.testing.assert_allclose(result.values_NCHW.sum((1, 2, 3)), expected, rtol=1e-12)


def test_a_neuron_s_shares_are_its_gradient_times_the_image(mixed: ForwardPass) -> None:
    neurons = [Neuron("second", channel, 3, 4) for channel in (0, 5, 9)]
    result = run_neurons("input_x_gradient", mixed, neurons)
    gradient = run_neurons("saliency", mixed, neurons).values_NCHW
    assert np.array_equal(result.values_NCHW, gradient * mixed.x_NCHW.numpy())


def test_a_row_does_not_depend_on_its_batch(mixed: ForwardPass) -> None:
    together = run("input_x_gradient", mixed, TARGETS).values_NCHW
    for n, target in enumerate(TARGETS):
        alone = run("input_x_gradient", ForwardPass(mixed.classifier, mixed.x_NCHW[n : n + 1]), [target])
        assert nets.relative_error(alone.values_NCHW, together[n : n + 1]) < 1e-12  # a batch of one: other kernels
