"""HiResCAM, LayerCAM, Grad-CAM++ and guided Grad-CAM against the papers' equations, captum and sums by hand."""

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

from convlens.errors import RequestError, UnsupportedModelError
from convlens.explain import ForwardPass, run

TARGETS = [0, 1, 3]
FAMILY = ("hires_cam", "layer_cam", "grad_cam_plus_plus", "guided_grad_cam")


@pytest.fixture(scope="module")
def mixed() -> ForwardPass:
    classifier = nets.classifier(nets.seeded(nets.Mixed), classes=4, gradcam_layer="third")
    return ForwardPass(classifier, nets.pictures(3, 3, 8, 8))


class LinearHead(nn.Module):
    """Two rectified maps -> a weight for every cell of them: all layers behind the maps are linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(2 * 6 * 6, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.relu(self.first(x_NCHW)).flatten(1))


@pytest.fixture(scope="module")
def linear_head() -> ForwardPass:
    classifier = nets.classifier(nets.seeded(LinearHead), classes=3, crop=6, gradcam_layer="relu")
    return ForwardPass(classifier, nets.pictures(2, 3, 6, 6))


def maps_and_gradient(forward: ForwardPass, layer: str, row: int, target: int) -> tuple[Tensor, Tensor]:
    """The layer's maps (C, h, w) and d logit / d maps, by a hook on a copy of the network."""
    module, caught = copy.deepcopy(forward.classifier.module), []

    def keep(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        caught.append(out)
        return out.clone()  # an in-place step that follows may not overwrite what is kept

    module.get_submodule(layer).register_forward_hook(keep)
    score = module(forward.x_NCHW[row : row + 1].clone().requires_grad_())[0, target]
    (gradient,) = torch.autograd.grad(score, caught[-1])
    return caught[-1][0].detach(), gradient[0]


def slow_hires_cam(maps_CHW: Tensor, gradient_CHW: Tensor) -> np.ndarray:
    """Draelos & Carin 2020, equation 3: Σ_f (∂s / ∂A^f) ⊙ A^f."""
    total = np.zeros(maps_CHW.shape[1:])
    for A, g in zip(maps_CHW.numpy(), gradient_CHW.numpy(), strict=True):
        total += g * A
    return total


def slow_layer_cam(maps_CHW: Tensor, gradient_CHW: Tensor) -> np.ndarray:
    """Jiang et al. 2021, equations 4 to 6, cell by cell."""
    channels, rows, columns = maps_CHW.shape
    total = np.zeros((rows, columns))
    for k in range(channels):
        for i in range(rows):
            for j in range(columns):
                weight = max(float(gradient_CHW[k, i, j]), 0.0)
                total[i, j] += weight * float(maps_CHW[k, i, j])
    return np.maximum(total, 0)


def slow_grad_cam_plus_plus(maps_CHW: Tensor, gradient_CHW: Tensor, score: float) -> np.ndarray:
    """Chattopadhay et al. 2018, equations 5, 9 and 19, with Y = exp(S) and its derivatives as the paper has them."""
    channels, rows, columns = maps_CHW.shape
    total = np.zeros((rows, columns))
    for k in range(channels):
        weight = 0.0
        for i in range(rows):
            for j in range(columns):
                g = float(gradient_CHW[k, i, j])
                first, second, third = (np.exp(score) * g**order for order in (1, 2, 3))
                denominator = 2 * second + sum(float(a) * third for a in maps_CHW[k].flatten())
                weight += (second / denominator if denominator else 0.0) * max(first, 0.0)
        total += weight * maps_CHW[k].numpy()
    return np.maximum(total, 0)


@pytest.mark.parametrize("layer", ["third", "relu"])
@pytest.mark.parametrize("method", ["hires_cam", "layer_cam", "grad_cam_plus_plus"])
def test_the_raw_map_is_the_paper_s_equation(
    linear_head: ForwardPass, mixed: ForwardPass, method: str, layer: str
) -> None:
    forward, targets = (mixed, TARGETS) if layer == "third" else (linear_head, [2, 0])
    options = {"relu": False} if method == "hires_cam" else {}
    result = run(method, forward, targets, options)
    for n, target in enumerate(targets):
        maps_CHW, gradient_CHW = maps_and_gradient(forward, layer, n, target)
        if method == "hires_cam":
            expected = slow_hires_cam(maps_CHW, gradient_CHW)
        elif method == "layer_cam":
            expected = slow_layer_cam(maps_CHW, gradient_CHW)
        else:
            expected = slow_grad_cam_plus_plus(maps_CHW, gradient_CHW, result.score_N[n]) / np.exp(result.score_N[n])
        assert np.abs(expected).max() > 0
        assert nets.relative_error(result.extras["map_NCHW"][n, 0], expected) < 1e-12
        size = tuple(forward.x_NCHW.shape[2:])
        drawn = F.interpolate(torch.as_tensor(expected)[None, None], size, mode="bilinear", align_corners=False)
        assert nets.relative_error(result.values_NCHW[n : n + 1], drawn) < 1e-12
    assert result.meta.layer == layer


def test_hires_cam_adds_up_to_the_logit_where_all_behind_the_layer_is_linear(linear_head: ForwardPass) -> None:
    result = run("hires_cam", linear_head, [2, 0], {"relu": False})
    bias = linear_head.classifier.module.head.bias.detach().numpy()
    np.testing.assert_allclose(result.extras["map_NCHW"].sum((1, 2, 3)), result.score_N - bias[[2, 0]], rtol=1e-12)


def test_grad_cam_does_not_add_up_there(linear_head: ForwardPass) -> None:
    """The paper's point: the mean gradient is no cell's own."""
    result = run("grad_cam", linear_head, [2, 0], {"relu": False})
    bias = linear_head.classifier.module.head.bias.detach().numpy()
    gap = result.extras["map_NCHW"].sum((1, 2, 3)) - (result.score_N - bias[[2, 0]])
    assert np.abs(gap).min() > 0.01


def test_hires_cam_is_grad_cam_where_the_head_averages_the_maps() -> None:
    net = nets.seeded(lambda: nets.Sequential(nn.ReLU()))
    forward = ForwardPass(nets.classifier(net, classes=3, gradcam_layer="middle"), nets.pictures(2, 3, 8, 8))
    one, other = (run(name, forward, [0, 2], {"relu": False}).values_NCHW for name in ("hires_cam", "grad_cam"))
    assert nets.relative_error(one, other) < 1e-12


class TwoMaps(nn.Module):
    """A pixel row (a, b) -> maps (a, b) and (−a, −b) -> Σ w · map, with weights (1, −2) and (3, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1, bias=False)
        self.first.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
        self.head = nn.Linear(4, 1, bias=False)
        self.head.weight.data = torch.tensor([[1.0, -2.0, 3.0, 4.0]])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.first(x_NCHW).flatten(1))


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        # features (2, 1) and (−2, −1), gradients (1, −2) and (3, 4)
        ("hires_cam", {"relu": False}, [2.0 - 6.0, -2.0 - 4.0]),
        ("hires_cam", {}, [0.0, 0.0]),
        ("layer_cam", {}, [0.0, 0.0]),  # 2 − 6 and 0 − 4
        # first map, ΣA = 3: α = 1/(2 + 3) and 4/(8 − 24), weight 1/5 · 1 + 0; second, ΣA = −3: 9/(18 − 81) = −1/7 and
        # 16/(32 − 192) = −1/10, weight −3/7 − 2/5. So (1/5 + 3/7 + 2/5) · (2, 1).
        ("grad_cam_plus_plus", {}, [2 * (0.2 + 3 / 7 + 0.4), 0.2 + 3 / 7 + 0.4]),
    ],
)
def test_two_maps_are_weighted_as_by_hand(method: str, options: dict[str, bool], expected: list[float]) -> None:
    x_NCHW = torch.tensor([2.0, 1.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    forward = ForwardPass(nets.classifier(TwoMaps().double(), classes=1, crop=2), x_NCHW)
    np.testing.assert_allclose(run(method, forward, [0], options).values_NCHW.flatten(), expected, rtol=1e-12)


def test_grad_cam_plus_plus_bears_logits_whose_exponential_overflows(linear_head: ForwardPass) -> None:
    large = copy.deepcopy(linear_head.classifier.module)
    large.head.bias.data += 1e4
    forward = ForwardPass(nets.classifier(large, classes=3, crop=6, gradcam_layer="relu"), linear_head.x_NCHW)
    one, other = (run("grad_cam_plus_plus", each, [2, 0]).values_NCHW for each in (forward, linear_head))
    assert np.array_equal(one, other)


# ---- guided Grad-CAM


def test_guided_grad_cam_is_captum_s() -> None:
    net = nets.seeded(lambda: nets.Sequential(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())))
    forward = ForwardPass(nets.classifier(net, classes=3, gradcam_layer="middle.1"), nets.pictures(2, 3, 8, 8))
    result = run("guided_grad_cam", forward, [0, 2])
    module = copy.deepcopy(net)  # captum leaves hooks
    for n, target in enumerate([0, 2]):
        x = forward.x_NCHW[n : n + 1].clone().requires_grad_()
        guided = attr.GuidedGradCam(module, module.middle[1])
        expected = guided.attribute(x, target=target, interpolate_mode="bilinear").detach()
        assert expected.abs().max() > 0
        assert nets.relative_error(result.values_NCHW[n : n + 1], expected) < 1e-12


def test_guided_grad_cam_is_the_product_of_its_two_methods(mixed: ForwardPass) -> None:
    result = run("guided_grad_cam", mixed, TARGETS)
    guided, cam = (run(name, mixed, TARGETS).values_NCHW for name in ("guided_backprop", "grad_cam"))
    assert np.array_equal(result.values_NCHW, guided * cam)
    assert (result.meta.relu_calls_ruled, result.meta.layer) == (nets.Mixed.relu_calls, "third")


def test_guided_grad_cam_is_refused_where_guided_backprop_is() -> None:
    classifier = nets.classifier(with_relu(nn.SiLU()), classes=3)
    with pytest.raises(UnsupportedModelError, match=r"guided_grad_cam is defined for ReLU networks only.*SiLU"):
        run("guided_grad_cam", ForwardPass(classifier, nets.pictures(1, 3, 8, 8, dtype=torch.float32)))


# ---- all of them


@pytest.mark.parametrize("method", FAMILY)
def test_a_row_does_not_depend_on_its_batch(mixed: ForwardPass, method: str) -> None:
    together = run(method, mixed, TARGETS).values_NCHW
    for n, target in enumerate(TARGETS):
        alone = ForwardPass(mixed.classifier, mixed.x_NCHW[n : n + 1])
        # float64 rounding: a batch of one takes other kernels
        np.testing.assert_allclose(
            run(method, alone, [target]).values_NCHW,
            together[n : n + 1],
            rtol=1e-9,
            atol=1e-12 * np.abs(together).max(),
        )


@pytest.mark.parametrize("method", FAMILY)
def test_a_layer_without_a_map_is_refused(mixed: ForwardPass, method: str) -> None:
    with pytest.raises(RequestError, match="layer 'head' has no map") as caught:
        run(method, mixed, TARGETS, {"layer": "head"})
    assert caught.value.field == "options.layer"
