"""Deconvnet is no default where its map does not depend on the image."""

from __future__ import annotations

import nets
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convlens import explain, load
from convlens.cli.models import without_lattice
from convlens.explain import ForwardPass
from convlens.instrument import remembers_places

METHODS = ["saliency", "deconvnet", "occlusion"]
POOLS = [
    nn.MaxPool2d(2),
    nn.AdaptiveMaxPool2d(2),
    nets.Call(lambda x: nn.functional.max_pool2d(x, 2)),
    nets.Call(lambda x: x.amax((2, 3), keepdim=True)),
]
NO_POOLS = [nn.Identity(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nets.Call(lambda x: x.softmax(1))]


def network(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nets.Sequential(nn.Sequential(nn.ReLU(), middle)).eval()


def deconvnet_maps(module: nn.Module) -> np.ndarray:
    """Of two unlike images, for one class."""
    x_NCHW = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32))
    result = explain.run("deconvnet", ForwardPass(nets.classifier(module, classes=3), x_NCHW), [1, 1])
    return np.asarray(result.values_NCHW)


@pytest.mark.parametrize("pool", POOLS)
def test_with_a_maximum_the_maps_differ_and_the_method_stays(
    pool: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    module = network(pool)
    one, other = deconvnet_maps(module)
    assert not np.allclose(one, other)
    assert without_lattice(METHODS, nets.classifier(module, classes=3), asked=["all"]) == METHODS
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("middle", NO_POOLS[:3])
def test_without_one_the_maps_are_the_same_and_the_method_is_left_out(middle: nn.Module) -> None:
    module = network(middle)
    one, other = deconvnet_maps(module)
    np.testing.assert_allclose(one, other, atol=1e-6)  # float32
    assert without_lattice(METHODS, nets.classifier(module, classes=3), asked=["all"]) == ["saliency", "occlusion"]


@pytest.mark.parametrize("middle", NO_POOLS)
def test_a_mean_or_a_softmax_is_no_maximum(middle: nn.Module) -> None:
    x_NCHW: Tensor = torch.rand(1, 3, 8, 8, requires_grad=True)
    assert not remembers_places(network(middle)(x_NCHW))


def test_a_network_that_deconvnet_refuses_is_left_to_its_own_error(capsys: pytest.CaptureFixture[str]) -> None:
    classifier = nets.classifier(network(nn.SiLU()), classes=3)
    assert without_lattice(METHODS, classifier, asked=["all"]) == METHODS
    assert capsys.readouterr().err == ""


def test_it_is_said_once_why_and_how_to_have_it_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    classifier = load(device="cpu")
    assert without_lattice(METHODS, classifier, asked=["all"]) == ["saliency", "occlusion"]
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("deconvnet is left out: packaged:efficientnet_lite0 has no max pooling") == 1
    assert "name it in --methods to have it all the same" in said


def test_asked_for_by_name_it_stays(capsys: pytest.CaptureFixture[str]) -> None:
    classifier = nets.classifier(network(nn.Identity()), classes=3)
    assert without_lattice(METHODS, classifier, asked=["all", "deconvnet"]) == METHODS
    assert capsys.readouterr().err == ""
