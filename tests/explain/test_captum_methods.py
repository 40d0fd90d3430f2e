"""SmoothGrad, integrated gradients and Grad-CAM against slow twins and closed forms."""

from __future__ import annotations

import copy
import dataclasses

import nets
import numpy as np
import pytest
import reference_gradients
import torch
from captum import attr
from torch import Tensor, nn
from torch.nn import functional as F

from convlens.errors import RequestError
from convlens.explain import ForwardPass, run
from convlens.models import Classifier, load
from convlens.models.layer_discovery import discover_layers
from convlens.models.preprocessing import Preprocessing

TARGETS = [0, 1, 3]


@pytest.fixture(scope="module")
def mixed() -> ForwardPass:
    classifier = nets.classifier(nets.seeded(nets.Mixed), classes=4, gradcam_layer="third")
    return ForwardPass(classifier, nets.pictures(3, 3, 8, 8))


@pytest.fixture(scope="module")
def linear() -> ForwardPass:
    return ForwardPass(nets.classifier(nets.seeded(nets.Linear), classes=3), nets.pictures(2, 3, 4, 4))


@pytest.fixture(scope="module")
def default() -> Classifier:
    return load("packaged:efficientnet_lite0", device="cpu")


@pytest.fixture(scope="module")
def chelsea_NCHW(default: Classifier) -> Tensor:
    return nets.photograph("chelsea.png", default.spec)


def weights(forward: ForwardPass, targets: list[int]) -> Tensor:
    return forward.classifier.module.head.weight.detach().reshape(3, 3, 4, 4)[targets]


# ---- all three against captum


def captums(name: str, module: nn.Module, x_1CHW: Tensor, target: int) -> Tensor:
    x = x_1CHW.clone().requires_grad_()
    if name == "grad_cam":
        cam = attr.LayerGradCam(module, module.third).attribute(x, target=target, relu_attributions=False)
        return attr.LayerAttribution.interpolate(cam, tuple(x.shape[2:]), interpolate_mode="bilinear")
    if name == "integrated_gradients":
        return attr.IntegratedGradients(module).attribute(x, target=target, n_steps=7)
    deviation = 0.15 * float(x_1CHW.max() - x_1CHW.min())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return attr.NoiseTunnel(attr.Saliency(module)).attribute(
            x, nt_samples=6, stdevs=deviation, nt_type="smoothgrad", target=target, abs=False
        )


@pytest.mark.parametrize(
    ("name", "options"),
    [("grad_cam", {"relu": False}), ("integrated_gradients", {"steps": 7}), ("smoothgrad", {"samples": 6, "seed": 5})],
)
def test_the_values_are_captums(mixed: ForwardPass, name: str, options: dict[str, int]) -> None:
    result = run(name, mixed, TARGETS, options).values_NCHW
    module = copy.deepcopy(mixed.classifier.module)  # captum leaves hooks
    for n, target in enumerate(TARGETS):
        expected = captums(name, module, mixed.x_NCHW[n : n + 1].contiguous(), target)
        # captum holds the quadrature's weights, and draws its noise, in float32
        assert nets.relative_error(result[n : n + 1], expected.detach()) < 1e-6


# ---- SmoothGrad


@pytest.mark.parametrize("samples", [5, 25])
def test_smoothgrad_equals_a_loop_over_the_same_draws(mixed: ForwardPass, samples: int) -> None:
    result = run("smoothgrad", mixed, TARGETS, {"samples": samples, "noise": 0.2, "seed": 3}).values_NCHW
    for n, target in enumerate(TARGETS):
        x_1CHW = mixed.x_NCHW[n : n + 1].contiguous()
        expected = reference_gradients.smoothgrad(
            mixed.classifier.module, x_1CHW, target, samples=samples, noise=0.2, seed=3
        )
        assert nets.relative_error(result[n : n + 1], expected) < 1e-12


def test_smoothgrad_is_the_same_by_seed_and_another_by_another(mixed: ForwardPass) -> None:
    first, again, other = (
        run("smoothgrad", mixed, TARGETS, {"samples": 4, "seed": seed}).values_NCHW for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert nets.relative_error(other, first) > 1e-3


def test_smoothgrad_neither_reads_nor_moves_the_global_generator(mixed: ForwardPass) -> None:
    before = torch.get_rng_state()
    first = run("smoothgrad", mixed, TARGETS, {"samples": 4}).values_NCHW
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert np.array_equal(run("smoothgrad", mixed, TARGETS, {"samples": 4}).values_NCHW, first)


def test_smoothgrad_of_a_row_does_not_depend_on_its_batch(mixed: ForwardPass) -> None:
    together = run("smoothgrad", mixed, TARGETS, {"samples": 4}).values_NCHW
    for n, target in enumerate(TARGETS):
        alone = run("smoothgrad", ForwardPass(mixed.classifier, mixed.x_NCHW[n : n + 1]), [target], {"samples": 4})
        assert np.array_equal(alone.values_NCHW, together[n : n + 1])


def test_smoothgrad_of_a_linear_net_is_its_weight(linear: ForwardPass) -> None:
    result = run("smoothgrad", linear, [2, 0], {"samples": 8})
    assert nets.relative_error(result.values_NCHW, weights(linear, [2, 0])) < 1e-15
    assert (result.meta.seed, result.meta.target_kind) == (0, "logit")


def test_smoothgrad_without_noise_is_saliency(mixed: ForwardPass) -> None:
    result = run("smoothgrad", mixed, TARGETS, {"samples": 4, "noise": 0.0}).values_NCHW
    assert nets.relative_error(result, run("saliency", mixed, TARGETS).values_NCHW) < 1e-12


# ---- integrated gradients


@pytest.mark.parametrize("baseline", [0.0, -1.5])
@pytest.mark.parametrize("steps", [2, 20])
def test_integrated_gradients_of_a_linear_net_are_weight_times_difference(
    linear: ForwardPass, steps: int, baseline: float
) -> None:
    result = run("integrated_gradients", linear, [2, 0], {"steps": steps, "baseline": baseline})
    expected = (linear.x_NCHW - baseline) * weights(linear, [2, 0])
    # captum holds the quadrature's weights in float32
    assert nets.relative_error(result.values_NCHW, expected) < 1e-7
    assert np.abs(result.extras["gap_N"]).max() < 1e-6


def test_integrated_gradients_equal_a_fine_riemann_sum(mixed: ForwardPass) -> None:
    module, x_1CHW = mixed.classifier.module, mixed.x_NCHW[:1].contiguous()
    along = [(i + 0.5) / 1000 for i in range(1000)]
    path_NCHW = torch.cat([x_1CHW * share for share in along])
    expected = reference_gradients.plain_gradient(module, path_NCHW, [2] * len(along)).mean(0, keepdim=True) * x_1CHW
    result = run("integrated_gradients", mixed.select([0]), [2], {"steps": 400})
    # the gradient jumps at every ReLU, where both quadratures are of first order only
    assert nets.relative_error(result.values_NCHW, expected) < 0.01


def test_the_stated_gap_is_what_the_sum_lacks(mixed: ForwardPass) -> None:
    result = run("integrated_gradients", mixed, TARGETS, {"steps": 5, "baseline": 0.25})
    with torch.no_grad():
        grey_N = mixed.classifier.module(torch.full_like(mixed.x_NCHW, 0.25))[range(3), TARGETS].numpy()
    gap_N = result.values_NCHW.sum((1, 2, 3)) - (result.score_N - grey_N)
    assert result.extras["gap_N"] == pytest.approx(gap_N, abs=1e-12)
    assert np.abs(gap_N).max() > 1e-6, "five steps are not enough to hide it"


def test_integrated_gradients_of_a_row_do_not_depend_on_its_batch(mixed: ForwardPass) -> None:
    together = run("integrated_gradients", mixed, TARGETS, {"steps": 20}).values_NCHW
    for n, target in enumerate(TARGETS):
        alone = ForwardPass(mixed.classifier, mixed.x_NCHW[n : n + 1])
        result = run("integrated_gradients", alone, [target], {"steps": 20}).values_NCHW
        assert nets.relative_error(result, together[n : n + 1]) < 1e-12  # in other batches, so in another order


def test_integrated_gradients_of_a_smooth_net_are_complete() -> None:
    net = nets.seeded(lambda: nets.Sequential(nn.Sequential(nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Softplus())))
    forward = ForwardPass(nets.classifier(net, classes=3), nets.pictures(1, 3, 8, 8))
    result = run("integrated_gradients", forward, [1], {"steps": 20})
    with torch.no_grad():
        rise = float(result.score_N[0] - net(torch.zeros(1, 3, 8, 8).double())[0, 1])
    # Gauss–Legendre converges at once where nothing jumps; captum holds its weights in float32
    assert abs(result.values_NCHW.sum() - rise) / abs(rise) < 1e-6
    assert result.meta.warnings == ()


def test_integrated_gradients_of_a_relu_net_come_near_completeness_with_many_steps(mixed: ForwardPass) -> None:
    result = run("integrated_gradients", mixed, TARGETS, {"steps": 300})
    with torch.no_grad():
        grey_N = mixed.classifier.module(torch.zeros_like(mixed.x_NCHW))[range(3), TARGETS].numpy()
    rise_N = result.score_N - grey_N
    assert np.abs(result.values_NCHW.sum((1, 2, 3)) - rise_N).max() / np.abs(rise_N).max() < 5e-3


def test_integrated_gradients_of_a_cat_nearly_add_up_to_its_score_and_few_steps_are_warned_of(
    default: Classifier, chelsea_NCHW: Tensor
) -> None:
    """Along the path this network's gradient is wild: with 50 steps a gap of 6 %, with 300 still 2 %, measured."""
    few, some = (run("integrated_gradients", ForwardPass(default, chelsea_NCHW), None, {"steps": s}) for s in (2, 50))
    with torch.no_grad():
        grey = default.module(torch.zeros_like(chelsea_NCHW))[0, some.target_N[0]].item()
    rise = some.score_N[0] - grey
    assert rise > 3.0
    assert abs(some.values_NCHW.sum() - rise) / rise < 0.1
    assert some.meta.warnings == ()
    assert "more steps bring them nearer" in few.meta.warnings[0]


# ---- Grad-CAM


@pytest.fixture(scope="module")
def resnet() -> Classifier:
    loaded = load("torchvision:resnet18:untrained", device="cpu")
    return dataclasses.replace(loaded, module=nets.perturbed(loaded.module))


@pytest.mark.parametrize("layer", ["layer4", "layer3", "layer4.0.bn1", "conv1"])
def test_grad_cam_equals_its_equations(resnet: Classifier, layer: str) -> None:
    """bn1's output is overwritten by the in-place ReLU right after it."""
    x_NCHW, targets = nets.pictures(2, 3, 64, 64), [3, 7]
    forward = ForwardPass(resnet, x_NCHW)
    result = run("grad_cam", forward, targets, {"layer": layer, "relu": False})
    rectified = run("grad_cam", forward, targets, {"layer": layer})
    for n, target in enumerate(targets):
        net = copy.deepcopy(resnet.module)
        expected = reference_gradients.grad_cam(net, net.get_submodule(layer), x_NCHW[n : n + 1], target)
        assert np.array_equal(rectified.extras["map_NCHW"][n], np.maximum(result.extras["map_NCHW"][n], 0))
        assert nets.relative_error(result.extras["map_NCHW"][n : n + 1], expected) < 1e-12
        stretched = F.interpolate(expected, (64, 64), mode="bilinear", align_corners=False)
        assert nets.relative_error(result.values_NCHW[n : n + 1], stretched) < 1e-12
    assert result.meta.layer == layer


class TwoPixels(nn.Module):
    """Pixels a and b -> a − 4, b − 4 -> ReLU in place -> 3·(sum)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 1)
        self.first.weight.data, self.first.bias.data = torch.ones(1, 1, 1, 1), torch.tensor([-4.0])
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor([[3.0, 3.0], [-3.0, -3.0]])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.relu(self.first(x_NCHW)).flatten(1))


@pytest.mark.parametrize(
    ("relu", "target", "expected"),
    [
        # features −3 and 2, gradients 0 and ±3, mean ±1.5
        (False, 0, [-4.5, 3.0]),
        (True, 0, [0.0, 3.0]),
        (False, 1, [4.5, -3.0]),
        (True, 1, [4.5, 0.0]),
    ],
)
def test_grad_cam_sees_what_an_in_place_relu_overwrites(relu: bool, target: int, expected: list[float]) -> None:
    x_NCHW = torch.tensor([1.0, 6.0]).reshape(1, 1, 1, 2)
    forward = ForwardPass(nets.classifier(TwoPixels(), classes=2, crop=2), x_NCHW)
    result = run("grad_cam", forward, [target], {"relu": relu})
    assert result.values_NCHW.flatten().tolist() == expected
    assert result.score_N.tolist() == [6.0 if target == 0 else -6.0]


def test_grad_cam_of_a_row_does_not_depend_on_its_batch(mixed: ForwardPass) -> None:
    together = run("grad_cam", mixed, TARGETS, {"relu": False}).values_NCHW
    for n, target in enumerate(TARGETS):
        alone = ForwardPass(mixed.classifier, mixed.x_NCHW[n : n + 1])
        result = run("grad_cam", alone, [target], {"relu": False}).values_NCHW
        assert nets.relative_error(result, together[n : n + 1]) < 1e-12


class SharedRelu(nn.Module):
    """One ReLU behind the convolution, behind the pooled channels and in the head, as in many hand-written networks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(5, 4)
        self.hidden.bias.data.fill_(1.0)  # no unit is off
        self.head = nn.Linear(4, 2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        pooled_NC11 = self.relu(self.pool(self.relu(self.first(x_NCHW))))
        return self.head(self.relu(self.hidden(pooled_NC11.flatten(1))))


def test_grad_cam_takes_the_last_run_of_a_layer_that_gives_a_map() -> None:
    net, x_NCHW = nets.seeded(SharedRelu), nets.pictures(2, 3, 8, 8)
    found = discover_layers(net.float(), Preprocessing(8, 8, "bilinear", (0.5,) * 3, (0.25,) * 3))
    assert found.gradcam_layer == "relu"
    net = net.double()
    result = run(
        "grad_cam", ForwardPass(nets.classifier(net, classes=2), x_NCHW), [0, 1], {"layer": "relu", "relu": False}
    )
    for n, target in enumerate((0, 1)):
        maps_CHW = net.first(x_NCHW[n].double()).clamp_min(0).detach().requires_grad_()
        hidden_D = net.hidden(maps_CHW.mean((1, 2)).clamp_min(0)).clamp_min(0)
        (gradient_CHW,) = torch.autograd.grad(net.head(hidden_D)[target], maps_CHW)
        cam_HW = (gradient_CHW.mean((1, 2))[:, None, None] * maps_CHW.detach()).sum(0)
        expected = F.interpolate(cam_HW[None, None], (8, 8), mode="bilinear", align_corners=False)
        assert nets.relative_error(result.values_NCHW[n : n + 1], expected) < 1e-12
    assert np.abs(result.values_NCHW).max() > 0


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("thrid", "no layer 'thrid'; did you mean third"),
        ("head", "layer 'head' has no map"),
        ("spare", "layer 'spare' exists but did not run"),
    ],
)
def test_grad_cam_refuses_layers_without_a_map(layer: str, message: str) -> None:
    net = nets.seeded(nets.Mixed)
    net.spare = nn.Conv2d(1, 1, 1)
    forward = ForwardPass(nets.classifier(net, classes=4), nets.pictures(1, 3, 8, 8))
    with pytest.raises(RequestError, match=message) as caught:
        run("grad_cam", forward, None, {"layer": layer})
    assert caught.value.field in ("layer", "options.layer")
