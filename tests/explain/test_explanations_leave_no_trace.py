"""After an explanation, also one that failed anywhere, the model is what it was to the last bit."""

from __future__ import annotations

from typing import Any

import nets
import pytest
import reference_gradients
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from convlens.explain import ForwardPass, available_methods, get, run

OPTIONS: dict[str, dict[str, Any]] = {
    "smoothgrad": {"samples": 20},
    "integrated_gradients": {"steps": 20},
    "occlusion": {"window": 4, "stride": 2},
    "rise": {"masks": 20, "cells": 4},
    "gradient_shap": {"samples": 20},
}
# Their backward pass stops at their layer, behind two of the three places.
CAMS = ("grad_cam", "hires_cam", "layer_cam", "grad_cam_plus_plus", "score_cam")
# Where a backward pass comes by.
BACKWARD = [
    (name, place)
    for name in available_methods()
    if get(name).needs in ("gradient", "maps", "model")
    for place in ("early", "middle", "late")
    if name not in CAMS or place == "late"
]
# Methods that run the model again after the forward that predicts.
FORWARD_AGAIN = [name for name in available_methods() if get(name).needs in ("maps", "scores", "model")]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")


class Fused(nn.Module):
    """Three places where it may fail: before the first layer, before the tapped one, after the last."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.middle, self.late = nets.Fuse(), nets.Fuse(), nets.Fuse()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(self.early(x_NCHW))))
        x = torch.relu(self.second(self.middle(x)))
        return self.late(self.head(x.mean((2, 3))))


@pytest.fixture
def net() -> Fused:
    """Some parameters want gradients, one has one already, as in a user's half-trained model."""
    net = nets.seeded(Fused).float()
    net.first.weight.requires_grad_(False)
    net.head.bias.grad = torch.ones(3)
    return net


def forward_of(net: nn.Module) -> ForwardPass:
    x_NCHW = nets.pictures(2, 3, 8, 8, dtype=torch.float32)
    classifier = nets.classifier(net, classes=3, gradcam_layer="second")
    return ForwardPass(classifier, x_NCHW, gallery=nets.StubGallery())


def state_of(net: nn.Module) -> dict[str, Any]:
    """All that an explanation could leave behind."""
    state: dict[str, Any] = {"modes": reference_gradients.function_modes(), "grad": torch.is_grad_enabled()}
    for table in GLOBAL_HOOKS:
        state[table] = len(getattr(torch_module, table))
    for name, part in net.named_modules():
        state[name] = (id(part), part.training, sorted(vars(part)), [len(getattr(part, table)) for table in HOOKS])
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        grad = None if tensor.grad is None else tensor.grad.tolist()
        state[f"tensor {name}"] = (id(tensor), tensor.requires_grad, grad, tensor._backward_hooks, tensor._version)
    return state


def prediction(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(nets.pictures(2, 3, 8, 8, seed=5, dtype=torch.float32))


def explain(name: str, net: nn.Module) -> None:
    run(name, forward_of(net), None, OPTIONS.get(name))


@pytest.mark.parametrize("name", available_methods())
def test_nothing_is_left_after_success(net: Fused, name: str) -> None:
    state, before, chance = state_of(net), prediction(net), torch.get_rng_state()
    explain(name, net)
    assert state_of(net) == state
    assert torch.equal(prediction(net), before)
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize("place", ["early", "middle", "late"])
@pytest.mark.parametrize("name", available_methods())
def test_nothing_is_left_when_the_first_forward_fails(net: Fused, name: str, place: str) -> None:
    fails_and_leaves_nothing(net, name, place, forward=1)


@pytest.mark.parametrize("place", ["early", "middle", "late"])
@pytest.mark.parametrize("name", FORWARD_AGAIN)
def test_nothing_is_left_when_a_later_forward_fails(net: Fused, name: str, place: str) -> None:
    """The second is captum's first, with its hooks in place, or the first of the occlusion sweep."""
    fails_and_leaves_nothing(net, name, place, forward=2)


@pytest.mark.parametrize(("name", "place"), BACKWARD)
def test_nothing_is_left_when_the_backward_fails(net: Fused, name: str, place: str) -> None:
    fails_and_leaves_nothing(net, name, place, backward=True)


def fails_and_leaves_nothing(net: Fused, name: str, place: str, **when: Any) -> None:
    before, state = prediction(net), state_of(net)
    fuse: nets.Fuse = getattr(net, place)
    fuse.arm(**when)
    with pytest.raises(nets.Blown):
        explain(name, net)
    fuse.arm()
    assert state_of(net) == state
    assert torch.equal(prediction(net), before)
    explain(name, net)  # and works again


@pytest.mark.parametrize("name", available_methods())
def test_an_explanation_works_where_the_caller_switched_gradients_off(net: Fused, name: str) -> None:
    with torch.no_grad():
        explain(name, net)
        assert not torch.is_grad_enabled()
