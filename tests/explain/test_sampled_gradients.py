"""Gradients at many points, through a network whose batch norms are folded meanwhile, against plain autograd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from nets import classifier
from torch import Tensor, nn
from torch.nn import functional

from convlens.explain import ForwardPass, run
from convlens.explain.sampled_gradients import folded_once
from convlens.types import Floats

STEPS = 20  # more than it takes to fold


class Normed(nn.Module):
    """Two convolutions with batch norms that have seen data, the second read twice where ``twice``."""

    def __init__(self, *, twice: bool = False, checkpointed: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(6, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(8)])
        self.head = nn.Linear(8, 3)
        self.twice, self.checkpointed = twice, checkpointed
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3
        for norm in self.norms:
            norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator))
            norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)

    def maps(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norms[0](self.first(x)), inplace=True)
        y = self.second(x)
        return functional.relu(self.norms[1](y)) + (y if self.twice else 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed:
            return self.head(torch.utils.checkpoint.checkpoint(self.maps, x, use_reentrant=False).mean((2, 3)))
        return self.head(self.maps(x).mean((2, 3)))


class OtherWayForMany(Normed):
    """Watched on one image, it does not show what several go through."""

    def maps(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            return super().maps(x)
        return functional.relu(self.norms[1](self.second(functional.relu(self.first(x))))) * 2


class Kinked(Normed):
    """At the first image alone, and only by exactly its maps, a twentieth more: a kink that rounding decides."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Tensor] = []
        self.kink = torch.empty(0)

    def maps(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.batches.append(x.detach().clone())
        y = self.norms[0](self.first(x))
        if y.requires_grad and not len(self.kink):
            self.kink = y[0].detach().clone()
        on = torch.tensor([torch.equal(row, self.kink) for row in y.detach()], dtype=y.dtype)
        return functional.relu(self.norms[1](self.second(functional.relu(y)))) * (1 + on[:, None, None, None] / 20)


def by_autograd(module: nn.Module, x_NCHW: Floats, target_N: list[int], many: bool) -> Floats:
    """Integrated gradients from grey, node by node; each node's image twice where the network minds being alone."""
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    total = np.zeros_like(x_NCHW)
    for node, weight in zip(nodes, weights, strict=True):
        x = torch.tensor(x_NCHW * (node + 1) / 2, requires_grad=True)
        batch = torch.cat([x, x]) if many else x
        logits = module(batch)[: len(x_NCHW)]
        score = logits[torch.arange(len(x)), target_N].sum()
        total += torch.autograd.grad(score, x)[0].numpy() * weight / 2
    return total * x_NCHW


@pytest.mark.parametrize(
    "make",
    [Normed, lambda: Normed(twice=True), lambda: Normed(checkpointed=True), OtherWayForMany],
    ids=["folded", "read twice", "checkpointed", "another way for many"],
)
def test_integrated_gradients_are_autograd_s(make: Callable[[], nn.Module]) -> None:
    module = make().double().eval()
    x_NCHW = np.random.default_rng(1).standard_normal((2, 3, 8, 8))
    forward = ForwardPass(classifier(module, classes=3), x_NCHW)
    values = run("integrated_gradients", forward, [2, 0], {"steps": STEPS}).values_NCHW
    expected = by_autograd(module, x_NCHW, [2, 0], many=isinstance(module, OtherWayForMany))
    np.testing.assert_allclose(values, expected, atol=1e-9)


def test_in_float32_folding_changes_rounding_only() -> None:
    module = Normed().eval()
    x_NCHW = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    forward = ForwardPass(classifier(module, classes=3), x_NCHW)
    values = run("smoothgrad", forward, [2, 0], {"samples": STEPS}).values_NCHW
    exact = ForwardPass(classifier(Normed().double().eval(), classes=3), x_NCHW.astype(np.float64))
    expected = run("smoothgrad", exact, [2, 0], {"samples": STEPS}).values_NCHW
    np.testing.assert_allclose(values, expected, atol=1e-3 * np.abs(expected).max())


def test_a_kink_at_the_first_point_does_not_keep_a_network_from_being_folded() -> None:
    x_NCHW = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    nodes, _ = np.polynomial.legendre.leggauss(STEPS)
    points_PCHW = torch.as_tensor((nodes + 1) / 2).float()[:, None, None, None] * x_NCHW
    module = Kinked().eval()
    run("integrated_gradients", ForwardPass(classifier(module, classes=3), x_NCHW), [0], {"steps": STEPS})
    at_second = [batch for batch in module.batches if any(torch.equal(row, points_PCHW[1]) for row in batch)]
    assert len(at_second) == 1  # a second time where the folded network's first batch is thrown away


def test_folded_once_the_second_call_neither_folds_nor_compares_and_gives_the_same() -> None:
    module = Kinked().eval()
    x_NCHW = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)

    def values() -> Floats:
        forward = ForwardPass(classifier(module, classes=3), x_NCHW)
        return run("gradient_shap", forward, [2], {"samples": STEPS}).values_NCHW

    alone = values()
    with folded_once(module):
        values()
        module.batches.clear()
        second = values()
        gradients = sum(map(len, module.batches))
    np.testing.assert_array_equal(second, alone)
    assert gradients == STEPS  # and none of one image alone to compare with


def test_behind_folded_once_changed_weights_are_folded_anew() -> None:
    module = Normed().eval()
    x_NCHW = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    forward = ForwardPass(classifier(module, classes=3), x_NCHW)
    with folded_once(module):
        run("smoothgrad", forward, [2], {"samples": STEPS})
    module.head.weight.data *= 2
    module.second.weight.data *= 3
    found = run("smoothgrad", forward, [2], {"samples": STEPS}).values_NCHW
    exact = Normed().eval()
    exact.load_state_dict(module.state_dict())
    expected = ForwardPass(classifier(exact.double(), classes=3), x_NCHW.astype(np.float64))
    expected_NCHW = run("smoothgrad", expected, [2], {"samples": STEPS}).values_NCHW
    np.testing.assert_allclose(found, expected_NCHW, atol=1e-3 * np.abs(expected_NCHW).max())


def test_the_network_is_as_it_was() -> None:
    module = Normed().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x_NCHW = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    run("integrated_gradients", ForwardPass(classifier(module, classes=3), x_NCHW), [0], {"steps": STEPS})
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
