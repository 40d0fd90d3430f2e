"""Score-CAM against the paper's algorithm, one feature map at a time, and a network added up by hand."""

from __future__ import annotations

import math

import nets
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlens.explain import ForwardPass, run
from convlens.types import Step

TARGETS = [0, 1, 2]
CHANNELS = 20  # more than go through the network at a time


@pytest.fixture(scope="module")
def twenty() -> ForwardPass:
    net = nets.seeded(lambda: nets.Sequential(nn.Sequential(nn.ReLU(), nn.Tanh()), channels=CHANNELS))
    return ForwardPass(nets.classifier(net, classes=3), nets.pictures(3, 3, 8, 8))


def slow_score_cam(module: nn.Module, x_1CHW: Tensor, maps_CHW: Tensor, target: int) -> Tensor:
    """Wang et al. 2020, algorithm 1, with its baseline X_b = 0: (h, w)."""
    increases = []
    with torch.no_grad():
        for map_HW in maps_CHW:
            up = F.interpolate(map_HW[None, None], tuple(x_1CHW.shape[2:]), mode="bilinear", align_corners=False)
            mask = (up - up.min()) / (up.max() - up.min())
            increases.append(module(x_1CHW * mask)[0, target] - module(torch.zeros_like(x_1CHW))[0, target])
    raised = [math.exp(float(each)) for each in increases]
    total = torch.zeros_like(maps_CHW[0])
    for weight, map_HW in zip(raised, maps_CHW, strict=True):
        total += weight / sum(raised) * map_HW
    return total.clamp_min(0)


@pytest.mark.parametrize("top", [5, 256])
def test_the_raw_map_is_the_paper_s_algorithm(twenty: ForwardPass, top: int) -> None:
    result = run("score_cam", twenty, TARGETS, {"top": top})
    module = twenty.classifier.module
    for n, target in enumerate(TARGETS):
        x_1CHW = twenty.x_NCHW[n : n + 1]
        maps_CHW = module.first(x_1CHW)[0].detach()
        ranges = [float(each.max() - each.min()) for each in maps_CHW]
        widest = sorted(sorted(range(CHANNELS), key=lambda c: -ranges[c])[:top])
        expected = slow_score_cam(module, x_1CHW, maps_CHW[widest], target)
        assert expected.max() > 0
        assert nets.relative_error(result.extras["map_NCHW"][n, 0], expected) < 1e-12


class ThreeMaps(nn.Module):
    """A pixel row (a, b) -> maps (a, b), (b − a taken twice) and (−a, −b) -> logits a + b and 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 1)
        self.first.weight.data = torch.tensor([1.0, 0.0, -1.0]).reshape(3, 1, 1, 1)
        self.first.bias.data = torch.tensor([0.0, 5.0, 0.0])
        self.head = nn.Linear(6, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0] * 6])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.first(x_NCHW).flatten(1))


def test_the_map_is_the_one_added_up_by_hand_and_flat_maps_have_no_part() -> None:
    # image (1, 3): masks (0, 1) of the first map, (1, 0) of the third; logits 3 and 1; the second map is 5 everywhere
    x_NCHW = torch.tensor([1.0, 3.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    forward = ForwardPass(nets.classifier(ThreeMaps().double(), classes=2, crop=2), x_NCHW)
    share = math.exp(3) / (math.exp(3) + math.exp(1))
    expected = (2 * share - 1) * np.array([1.0, 3.0])
    np.testing.assert_allclose(run("score_cam", forward, [0]).values_NCHW.flatten(), expected, rtol=1e-12)


def test_a_row_gets_alone_what_it_gets_among_others(twenty: ForwardPass) -> None:
    together = run("score_cam", twenty, TARGETS, {"top": 6}).values_NCHW
    for n, target in enumerate(TARGETS):
        alone = ForwardPass(twenty.classifier, twenty.x_NCHW[n : n + 1])
        # float64 rounding: a batch of one takes other kernels for the maps
        assert nets.relative_error(run("score_cam", alone, [target], {"top": 6}).values_NCHW, together[[n]]) < 1e-12


def test_progress_is_told_in_masked_images(twenty: ForwardPass) -> None:
    steps: list[Step] = []
    watched = ForwardPass(twenty.classifier, twenty.x_NCHW[:2], on_step=steps.append)
    run("score_cam", watched, [0, 1])
    assert [(step.stage, step.done, step.total) for step in steps] == [
        ("score_cam", done, 40) for done in (8, 16, 20, 28, 36, 40)
    ]
