"""Adebayo et al. 2018 (arXiv:1810.03292): maps of networks with random weights, against those of the trained one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import convlens
from convlens.errors import RequestError
from convlens.evaluation.randomisation import (
    RandomisedNetworks,
    randomisation_curves,
    randomisation_values,
    randomised,
)
from convlens.evaluation.stages import stages
from convlens.explain import ForwardPass
from convlens.models import Classifier
from convlens.types import Step


class Small(nn.Module):
    """Two convolutions with a batch norm, as trained: nothing in it is as it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, 5)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.norm(self.first(x_NCHW)).relu()
        return self.head(self.second(x).relu().mean((2, 3)))


@pytest.fixture
def net() -> Classifier:
    return nets.classifier(nets.perturbed(nets.seeded(Small)).float(), classes=5, crop=16)


def image(size: int = 16, seed: int = 0) -> Tensor:
    return nets.pictures(3, size, size, seed=seed, dtype=torch.float32)


def values_of(classifier: Classifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in classifier.module.state_dict().items()}


# ---- the random networks


def test_the_network_and_the_global_generator_stay_as_they_were(net: Classifier) -> None:
    before, state = values_of(net), torch.get_rng_state()
    with RandomisedNetworks(net, stages(net), seed=3) as networks:
        networks.curves(image(), 1, {"saliency": {}})
    assert all(torch.equal(value, before[name]) for name, value in values_of(net).items())
    assert torch.equal(torch.get_rng_state(), state)


def test_only_the_stages_named_are_random(net: Classifier) -> None:
    after = values_of(randomised(net, stages(net)[:2], seed=0))
    changed = {name for name, value in values_of(net).items() if not torch.equal(value, after[name])}
    assert changed == {"head.weight", "head.bias", "second.weight", "second.bias"}


def test_a_seed_gives_the_same_weights_again_and_another_seed_others(net: Classifier) -> None:
    one, again, other = (values_of(randomised(net, stages(net), seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if name != "norm.num_batches_tracked")


def test_a_stage_has_the_same_random_weights_in_the_cascade_and_alone(net: Classifier) -> None:
    found = stages(net)
    cascade, alone = (values_of(randomised(net, each, seed=0)) for each in (found, found[1:2]))
    assert torch.equal(cascade["second.weight"], alone["second.weight"])


def test_filters_keep_their_size_and_are_unrelated_to_the_trained_ones(net: Classifier) -> None:
    trained = net.module.second.weight.detach()
    drawn = randomised(net, stages(net), seed=0).module.second.weight.detach()
    # Of 4608 normal values the root mean square is within 1/√9216 of the true one, and a correlation within 1/√4608.
    assert float(drawn.square().mean().sqrt() / trained.square().mean().sqrt()) == pytest.approx(1, abs=4 / 96)
    assert abs(np.corrcoef(trained.flatten(), drawn.flatten())[0, 1]) < 4 / 68


def test_a_batch_norm_is_shuffled_with_its_statistics(net: Classifier) -> None:
    trained, drawn = net.module.norm, randomised(net, stages(net), seed=0).module.norm
    columns = [torch.stack([n.weight, n.bias, n.running_mean, n.running_var]).T.tolist() for n in (trained, drawn)]
    assert columns[0] != columns[1]
    assert sorted(columns[0]) == sorted(columns[1])


def test_weights_that_are_not_random_are_shared(net: Classifier) -> None:
    copy = randomised(net, stages(net)[:1], seed=0).module
    assert copy.first.weight.data_ptr() == net.module.first.weight.data_ptr()
    assert copy.head.weight.data_ptr() != net.module.head.weight.data_ptr()


def test_a_weight_used_at_two_places_stays_one() -> None:
    module = nets.seeded(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.Flatten()))
    module.append(nn.Linear(3 * 64, 2).double())
    module[2].weight = module[0].weight
    classifier = nets.classifier(module, classes=2)
    copy = randomised(classifier, stages(classifier), seed=0).module
    assert copy[0].weight is copy[2].weight
    assert not torch.equal(copy[0].weight, module[0].weight)


class Recurrent(nn.Module):
    """Maps (N, C, h, w) to what an LSTM makes of their rows: it keeps its weights in a list of its own, too."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        return self.lstm(maps_NCHW.flatten(2).transpose(1, 2))[0]


PARTS = {
    "scripted": lambda: torch.jit.trace(nn.Conv2d(4, 4, 3).eval(), torch.zeros(1, 4, 8, 8)),
    "recurrent": Recurrent,
    "of normed weights": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    "of weights in a function": lambda: torch.fx.symbolic_trace(nn.Conv2d(4, 4, 3)),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.jit.trace
@pytest.mark.parametrize("kind", PARTS)
def test_every_kind_of_part_gets_random_weights_and_the_users_keeps_its_own(kind: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), PARTS[kind](), nn.Flatten(), nn.LazyLinear(3)).eval()
    x_NCHW = image(8)[None]
    with torch.no_grad():
        before = module(x_NCHW)
        classifier = convlens.wrap(module, size=8)
        (stage,) = (stage for stage in stages(classifier) if stage.name.startswith("1"))
        copy = randomised(classifier, [stage], seed=0)
        assert torch.equal(module(x_NCHW), before)
        assert torch.allclose(classifier.module(x_NCHW), before)
        assert not torch.allclose(copy.module(x_NCHW), before)


def test_no_hash_says_that_the_random_weights_were_the_trained_ones(net: Classifier) -> None:
    assert randomised(net, stages(net), seed=0).spec.weights_sha256 == ""


# ---- what is known beforehand


@pytest.mark.parametrize("seed", range(4))
def test_a_linear_networks_saliency_correlates_with_that_of_random_weights_by_chance_only(seed: int) -> None:
    module = nets.seeded(lambda: nets.Linear(size=32))
    classifier = nets.classifier(module, classes=3, crop=32)
    curves = randomisation_curves(classifier, image(32), 1, {"saliency": {}}, stages=stages(classifier), seed=seed)
    assert abs(curves["saliency"]["cascading"]["spearman"][0]) < 4 / 32  # four standard deviations, 1/√pixels each


class TwoBranches(nn.Module):
    """Class 0 rests on the left branch alone and class 1 on the right one, which runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 1, 3, padding=1)
        self.right = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.first(x_NCHW).relu()
        return torch.cat([self.left(x).mean((2, 3)), self.right(x).mean((2, 3))], dim=1)


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "guided_backprop", "grad_cam"])
def test_what_a_map_does_not_rest_on_leaves_it_equal(method: str) -> None:
    classifier = nets.classifier(nets.seeded(TwoBranches), classes=2, crop=16, embedding_layer="left")
    found = stages(classifier)
    assert [stage.name for stage in found] == ["right", "left", "first"]
    curves = randomisation_curves(classifier, image().double(), 0, {method: {}}, stages=found)[method]
    for mode in ("cascading", "independent"):
        assert curves[mode]["spearman"][0] == 1.0
        assert curves[mode]["ssim"][0] == pytest.approx(1.0)
        assert curves[mode]["spearman"][1] is None or curves[mode]["spearman"][1] < 1.0


class OneUnit(nn.Module):
    """logits = head · mean(relu(w ∗ x)): under positive heads guided backprop is one map, whatever they weigh."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 1, 3, padding=1)
        self.head = nn.Linear(1, 6)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.first(x_NCHW).relu().mean((2, 3)))


@pytest.fixture
def one_unit() -> tuple[Classifier, list[int], list[int]]:
    """With the classes whose random head is positive, and those whose is negative; all trained ones are positive."""
    module = nets.seeded(OneUnit)
    module.head.weight.data = torch.tensor([[1.0], [2.0], [3.0], [-1.0], [-2.0], [-3.0]], dtype=torch.float64)
    classifier = nets.classifier(module, classes=6, crop=16)
    head = randomised(classifier, stages(classifier)[:1], seed=0).module.head.weight[:, 0]
    trained = module.head.weight[:, 0]
    kept = [n for n in range(6) if trained[n] > 0 and head[n] > 0]
    turned = [n for n in range(6) if trained[n] > 0 and head[n] < 0]
    return classifier, kept, turned


def test_guided_backprop_of_one_unit_does_not_change_under_a_head_of_the_same_sign(one_unit: Any) -> None:
    classifier, kept, _ = one_unit
    curves = randomisation_curves(
        classifier, image().double(), kept[0], {"guided_backprop": {}}, stages=stages(classifier)
    )["guided_backprop"]["cascading"]
    assert curves["spearman"][0] == pytest.approx(1.0, abs=1e-3)  # to rounding: values of a pixel and its mirror
    assert curves["ssim"][0] == pytest.approx(1.0)


def test_a_map_that_is_zero_everywhere_gives_nothing_to_compare_and_says_so(one_unit: Any) -> None:
    classifier, _, turned = one_unit
    curves = randomisation_curves(
        classifier, image().double(), turned[0], {"guided_backprop": {}, "saliency": {}}, stages=stages(classifier)
    )
    cascading = curves["guided_backprop"]["cascading"]
    assert cascading["spearman"][0] is cascading["ssim"][0] is None
    assert cascading["errors"]["head"] == "the map of this network has the same value everywhere"
    assert "randomised_top" not in randomisation_values(curves["guided_backprop"])
    assert curves["saliency"]["cascading"]["spearman"][0] is not None
    assert "errors" not in curves["saliency"]["cascading"]


def test_curves_are_those_of_plain_torch_and_scipy(net: Classifier) -> None:
    found = stages(net)
    curves = randomisation_curves(net, image(), 2, {"saliency": {}}, stages=found, seed=5)["saliency"]

    def map_HW(classifier: Classifier) -> np.ndarray:
        x_NCHW = image()[None].requires_grad_()
        (gradient,) = torch.autograd.grad(classifier.module(x_NCHW)[0, 2], x_NCHW)
        return gradient[0].abs().amax(0).numpy()

    for mode, parts in (("cascading", lambda n: found[: n + 1]), ("independent", lambda n: found[n : n + 1])):
        wanted = [
            spearmanr(map_HW(net).ravel(), map_HW(randomised(net, parts(n), seed=5)).ravel()).statistic
            for n in range(len(found))
        ]
        np.testing.assert_allclose(curves[mode]["spearman"], wanted, atol=1e-3)  # ranks that rounding swaps


def test_the_values_are_the_ends_of_the_cascade(net: Classifier) -> None:
    curves = randomisation_curves(net, image(), 2, {"saliency": {}}, stages=stages(net))["saliency"]
    spearman = curves["cascading"]["spearman"]
    assert randomisation_values(curves) == {"randomised_top": spearman[0], "randomised_all": spearman[-1]}


def test_magnitudes_are_compared_beside_values_with_a_sign(net: Classifier) -> None:
    curves = randomisation_curves(net, image(), 2, {"saliency": {}, "input_x_gradient": {}}, stages=stages(net))
    saliency, signed = (curves[name]["cascading"] for name in ("saliency", "input_x_gradient"))
    assert saliency["spearman"] == saliency["spearman_absolute"]
    assert signed["spearman"] != signed["spearman_absolute"]


def test_maps_that_are_computed_already_are_taken(net: Classifier) -> None:
    copy = randomised(net, stages(net)[:1], seed=0)
    original = convlens.run("saliency", ForwardPass(copy, image()[None]), [2]).values_NCHW[0]
    with RandomisedNetworks(net, stages(net), seed=0) as networks:
        curves = networks.curves(image(), 2, {"saliency": {}}, originals={"saliency": np.abs(original).max(0)})
    assert curves["saliency"]["cascading"]["spearman"][0] == 1.0


# ---- failures and progress


class Overflowing(nn.Module):
    """Finite as trained, for the second weight undoes the first; infinite with either of them drawn anew."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1, bias=False)
        self.head = nn.Linear(4, 3, bias=False)
        self.first.weight.data *= 0
        self.first.weight.data[:, 0] = 1e30
        self.head.weight.data[:] = 1e30 * torch.tensor([[1.0, -1.0, 1.0, -1.0]])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.first(x_NCHW).mean((2, 3)) - self.first(x_NCHW).mean((1, 2, 3))[:, None])


def test_a_method_that_fails_on_a_random_network_has_no_value_there_and_a_reason() -> None:
    classifier = nets.classifier(Overflowing(), classes=3, crop=16)
    methods = {"occlusion": {"window": 8, "stride": 8}}
    with RandomisedNetworks(classifier, stages(classifier)) as networks:
        original = {"occlusion": image()[0].numpy()}
        curves = networks.curves(image(), 0, methods, originals=original)["occlusion"]["cascading"]
    assert curves["spearman"] == [None, None] == curves["ssim"]
    assert "NaN or infinite" in curves["errors"]["first"]


def test_small_maps_have_no_structural_similarity_and_a_reason() -> None:
    classifier = nets.classifier(nets.seeded(nets.Linear), classes=3, crop=4)
    curves = randomisation_curves(classifier, image(4).double(), 0, {"saliency": {}}, stages=stages(classifier))[
        "saliency"
    ]["cascading"]
    assert curves["spearman"][0] is not None
    assert curves["ssim"] == [None]
    assert "11 pixels a side" in curves["errors"]["head"]


def test_networks_without_classes_are_compared_by_their_embedding() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = convlens.wrap(module, size=16, features=True)
    methods = {"occlusion": {"window": 4, "stride": 4}}
    curves = randomisation_curves(classifier, image(), None, methods, stages=stages(classifier))
    assert all(value is not None for value in curves["occlusion"]["cascading"]["spearman"])


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"neighbours": {}}, "neighbours gives no map"),
        ({"salience": {}}, "did you mean saliency"),
        ({"saliency": {"steps": 3}}, "saliency has no option 'steps'"),
    ],
)
def test_methods_that_cannot_be_compared_are_refused(net: Classifier, methods: Any, message: str) -> None:
    with RandomisedNetworks(net, stages(net)) as networks, pytest.raises(RequestError, match=message):
        networks.curves(image(), 0, methods)


def test_closed_networks_say_so(net: Classifier) -> None:
    with RandomisedNetworks(net, stages(net)) as networks:
        pass
    with pytest.raises(RequestError, match="are closed"):
        networks.curves(image(), 0, {"saliency": {}})


def test_without_a_stage_there_is_nothing_to_randomise(net: Classifier) -> None:
    with pytest.raises(RequestError, match="no stage to randomise"):
        RandomisedNetworks(net, ())


def test_progress_counts_the_networks_of_both_modes(net: Classifier) -> None:
    steps: list[Step] = []
    randomisation_curves(net, image(), 0, {"saliency": {}}, stages=stages(net), on_step=steps.append)
    # Three cascades, and two stages alone: the first is the same network in both modes.
    assert [(step.done, step.total) for step in steps] == [(n, 5) for n in range(1, 6)]


# ---- trained networks


def photographs(test_data: Path, classifier: Classifier, count: int) -> list[Tensor]:
    files = sorted((test_data / "data" / "imagenet").glob("*.jpg"))[5 :: 500 // count][:count]
    pictures = (convlens.image.read(file) for file in files)
    return [torch.as_tensor(convlens.image.prepare(each, classifier.spec).x_CHW) for each in pictures]


def predicted(classifier: Classifier, images: Sequence[Tensor]) -> list[int]:
    return [int(row) for row in ForwardPass(classifier, torch.stack(list(images))).logits_NK.argmax(1)]


@pytest.mark.slow
def test_guided_backprop_hardly_depends_on_the_top_layer_and_saliency_and_grad_cam_do(test_data: Path) -> None:
    classifier = convlens.load("packaged:efficientnet_lite0", device="cpu")
    images = photographs(test_data, classifier, 4)
    methods: dict[str, dict[str, Any]] = {"guided_backprop": {}, "saliency": {}, "grad_cam": {}}
    with RandomisedNetworks(classifier, stages(classifier)[:1], seed=0) as networks:
        found = [networks.curves(x, t, methods) for x, t in zip(images, predicted(classifier, images), strict=True)]
    top = {name: [randomisation_values(curves[name])["randomised_top"] for curves in found] for name in methods}
    assert min(top["guided_backprop"]) > 0.9
    assert np.mean(top["saliency"]) < 0.6
    assert np.mean(top["grad_cam"]) < 0.6


@pytest.mark.slow
def test_with_all_weights_random_guided_backprop_changes_as_well(test_data: Path) -> None:
    classifier = convlens.load("packaged:efficientnet_lite0", device="cpu")
    (x_CHW,) = photographs(test_data, classifier, 1)
    (target,) = predicted(classifier, [x_CHW])
    curves = randomisation_curves(
        classifier, x_CHW, target, {"guided_backprop": {}, "saliency": {}}, stages=stages(classifier, most=4)
    )
    for name in ("guided_backprop", "saliency"):
        assert abs(randomisation_values(curves[name])["randomised_all"]) < 0.5


def shares_on(module: nn.Module, x_NCHW: Tensor) -> tuple[Tensor, list[float]]:
    """The logits, and of each ReLU's outputs the share that is not 0."""
    shares: list[float] = []
    for part in module.modules():
        if isinstance(part, nn.ReLU | nn.ReLU6):
            part.register_forward_hook(lambda _, __, out: shares.append(float((out > 0).float().mean())))
    return module(x_NCHW), shares


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    ["packaged:efficientnet_lite0", "torchvision:squeezenet1_0?weights={}/weights/squeezenet1_0-imagenet.safetensors"],
)
def test_activations_and_gradients_live_all_the_way_down_the_cascade(test_data: Path, model: str) -> None:
    classifier = convlens.load(model.format(test_data), device="cpu")
    x_NCHW = torch.stack(photographs(test_data, classifier, 2))
    found = stages(classifier)
    for depth in range(1, len(found) + 1):
        module = randomised(classifier, found[:depth], seed=0).module
        image_NCHW = x_NCHW.clone().requires_grad_()
        logits_NK, shares = shares_on(module, image_NCHW)
        (gradient,) = torch.autograd.grad(logits_NK.sum(), image_NCHW)
        assert min(shares) > 0.02  # of the trained networks' own .08 and .12
        assert torch.isfinite(logits_NK).all()
        assert float(gradient.flatten(1).abs().amax(1).min()) > 1e-6
        assert float(logits_NK.detach().std(0).max()) > 1e-3  # it still tells images apart
