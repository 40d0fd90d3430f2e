"""DeepLIFT against captum where its hooks see everything, sums by hand, and the rise that its shares add up to."""

from __future__ import annotations

import copy
from typing import Any

import nets
import numpy as np
import pytest
import torch
from captum import attr
from torch import Tensor, nn
from torch.nn import functional as F
from unsupported_activations import with_relu

from convlens.errors import UnsupportedModelError
from convlens.explain import ForwardPass, run

TARGETS = [0, 2]


class Plain(nn.Module):
    """What captum's hooks see rightly: modules, each called once, no two of them side by side, no overlapping windows.

    Between neighbours captum's hooks hand on the gradient and not the multiplier. The offset leaves no ties: a constant
    image has the same maximum at every place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", nets.pictures(3, 8, 8, seed=9) / 4)
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu_1 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.second = nn.Conv2d(6, 5, 3)
        self.relu_2 = nn.ReLU()
        self.head = nn.Linear(5 * 2 * 2, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.relu_1(self.norm(self.first(x_NCHW + self.offset)))
        return self.head(self.relu_2(self.second(self.pool(x * 2.0))).flatten(1))


class Respelled(Plain):
    """The same network with one module for both ReLUs, in place, and functions."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.norm(self.first(x_NCHW + self.offset))), 2)
        x = self.second(x * 2.0)
        F.relu(x, inplace=True)
        return self.head(self.relu_1(x).flatten(1))


class Residual(nn.Module):
    """Skips, views that are rectified in place, ReLU6, overlapping max pooling, concatenation and average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.first(x_NCHW)), 3, stride=2, padding=1, ceil_mode=True)
        y = self.second(x)
        self.relu(y[:, 3:])
        x = F.relu6(x * 3 + y) * 0.5
        x = torch.cat([x, self.relu(self.second(x) - 0.1)], 1)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def forward_of(net: Any, **options: Any) -> ForwardPass:
    return ForwardPass(nets.classifier(nets.seeded(net), classes=3), nets.pictures(2, 3, 8, 8, **options))


@pytest.mark.parametrize("net", [Plain, Respelled])
@pytest.mark.parametrize("baseline", [0.0, -0.7])
def test_the_values_are_captum_s_however_the_network_spells_its_relus(net: type[nn.Module], baseline: float) -> None:
    forward, plain = forward_of(net), nets.seeded(Plain)
    result = run("deep_lift", forward, TARGETS, {"baseline": baseline})
    for n, target in enumerate(TARGETS):
        x_1CHW = forward.x_NCHW[n : n + 1].contiguous()
        expected = attr.DeepLift(copy.deepcopy(plain)).attribute(x_1CHW, torch.full_like(x_1CHW, baseline), target)
        assert expected.abs().max() > 0
        assert nets.relative_error(result.values_NCHW[n : n + 1], expected.detach()) < 1e-9


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # image (2, 1): units 3, 1 and −2; baseline 0: units 0. Multipliers 3/3, 1/1 and 0/−2.
        # logit 0 is u − v = (a + b) − (a − b): 0 · 2 and 2 · 1; logit 1 the opposite
        (0, (0.0, 2.0)),
        (1, (0.0, -2.0)),
    ],
)
def test_the_shares_are_those_added_up_by_hand(target: int, expected: tuple[float, float]) -> None:
    forward = ForwardPass(nets.classifier(nets.ByHand(torch.relu), classes=2, crop=1), nets.pair(2.0, 1.0))
    assert tuple(run("deep_lift", forward, [target]).values_NCHW.flatten().tolist()) == expected


def test_units_that_switch_pass_the_quotient_of_their_differences() -> None:
    # image (1, −3), baseline (1, 1): units −2, 4 and −1 against 2, 0 and −1, after the ReLU 0, 4, 0 against 2, 0, 0.
    # Multipliers (0 − 2)/(−2 − 2) = 1/2, (4 − 0)/(4 − 0) = 1 and, without a difference, the gradient 0.
    # Logit 0 is u − v + 2w: b's weights 1/2 · 1 − 1 · (−1) = 3/2, its difference −4; a has none.
    forward = ForwardPass(nets.classifier(nets.ByHand(torch.relu), classes=2, crop=1), nets.pair(1.0, -3.0))
    result = run("deep_lift", forward, [0], {"baseline": 1.0})
    assert tuple(result.values_NCHW.flatten().tolist()) == (0.0, -6.0)
    # which is logit −4 less 2


class Pooled(nn.Module):
    """A row of three pixels -> the maximum of the first two, and of the last two -> their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 1, bias=False)
        self.first.weight.data.fill_(1.0)
        self.head = nn.Linear(2, 1, bias=False)
        self.head.weight.data.fill_(1.0)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(F.max_pool2d(self.first(x_NCHW), (1, 2), stride=1).flatten(1))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((1.0, 3.0, 2.0), (0.0, 6.0, 0.0)),  # the middle lifts both windows by 3: the sum of both, not one of them
        ((-1.0, -2.0, -3.0), (-1.0, -2.0, 0.0)),  # both fall, by −1 and −2, from where the baseline's maxima lie
    ],
)
def test_overlapping_windows_of_max_pooling_add_up(row: tuple[float, ...], expected: tuple[float, ...]) -> None:
    x_NCHW = torch.tensor(row, dtype=torch.float64).reshape(1, 1, 1, 3)
    result = run("deep_lift", ForwardPass(nets.classifier(Pooled().double(), classes=1), x_NCHW), [0])
    assert result.values_NCHW.sum() == sum(expected)
    if row[0] > 0:
        assert tuple(result.values_NCHW.flatten().tolist()) == expected


@pytest.mark.parametrize("net", [Plain, Respelled, Residual])
def test_the_shares_add_up_to_the_rise(net: type[nn.Module]) -> None:
    forward = forward_of(net)
    result = run("deep_lift", forward, TARGETS, {"baseline": 0.3})
    with torch.no_grad():
        logits_NK = forward.classifier.module(forward.x_NCHW)
        rise_N = (logits_NK - forward.classifier.module(torch.full_like(forward.x_NCHW, 0.3)))[[0, 1], TARGETS].numpy()
    np.testing.assert_allclose(result.values_NCHW.sum((1, 2, 3)), rise_N, rtol=1e-9)
    assert result.meta.warnings == ()


def test_a_step_in_place_on_a_view_that_the_graph_hides_is_warned_of() -> None:
    class Hidden(Plain):
        def forward(self, x_NCHW: Tensor) -> Tensor:
            x = self.first(x_NCHW) * 1.0
            x[:, 1:].sigmoid_()
            return self.head(F.adaptive_avg_pool2d(x, 2)[:, :5].flatten(1))

    (warning,) = run("deep_lift", forward_of(Hidden), TARGETS).meta.warnings
    assert "the shares miss the score's rise" in warning


REFUSED = {
    "SiLU": (lambda: with_relu(nn.SiLU()), "SiluBackward"),
    "a gate": (
        lambda: nets.Sequential(nets.Call(lambda x: x * x.mean((2, 3), keepdim=True))),
        "multiplies or divides one function of the image by another",
    ),
    "a sigmoid": (lambda: nets.Sequential(nn.Sigmoid()), "SigmoidBackward"),
    "group normalisation": (lambda: nets.Sequential(nn.GroupNorm(2, 4)), "GroupNorm"),
    "instance normalisation": (lambda: nets.Sequential(nn.InstanceNorm2d(4)), "BatchNorm"),
    "a quotient": (lambda: nets.Sequential(nets.Call(lambda x: 1 / (x + 9))), "Reciprocal"),
    "division by the image": (lambda: nets.Sequential(nets.Call(lambda x: torch.ones_like(x) / (x + 9))), "divides by"),
    "division by a mean": (lambda: nets.Sequential(nets.Call(lambda x: x / x.mean((2, 3), keepdim=True))), "divides"),
    "adaptive max pooling": (lambda: nets.Sequential(nn.AdaptiveMaxPool2d(2)), "AdaptiveMaxPool2D"),
    "indices of max pooling": (
        lambda: nets.Sequential(nets.Call(lambda x: F.max_pool2d(x, 2, return_indices=True)[0])),
        "MaxPool2DWithIndices",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_with_steps_that_have_no_rule_is_refused_with_the_step(name: str) -> None:
    net, reason = REFUSED[name]
    classifier = nets.classifier(nets.seeded(net), classes=3)
    with pytest.raises(
        UnsupportedModelError, match=f"deep_lift has rules for .*{reason}.*integrated_gradients"
    ) as raised:
        run("deep_lift", ForwardPass(classifier, nets.pictures(1, 3, 8, 8)))
    assert raised.value.field == "method"


def test_rows_do_not_depend_on_their_batch_and_many_go_through_in_parts() -> None:
    classifier = nets.classifier(nets.seeded(Residual), classes=3)
    x_NCHW, targets = nets.pictures(11, 3, 8, 8), [n % 3 for n in range(11)]
    together = run("deep_lift", ForwardPass(classifier, x_NCHW), targets).values_NCHW
    for n, target in enumerate(targets):
        alone = run("deep_lift", ForwardPass(classifier, x_NCHW[n : n + 1]), [target]).values_NCHW
        assert nets.relative_error(alone, together[n : n + 1]) < 1e-12  # a batch of one: other kernels
