"""A network's parts from its head down to its first convolution, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import nets
import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn import functional as F

import convlens
from convlens.errors import RequestError, UnsupportedModelError
from convlens.evaluation.stages import Stage, stages
from convlens.models import Classifier


def names(found: tuple[Stage, ...]) -> list[str]:
    return [stage.name for stage in found]


def wrapped(module: nn.Module, size: int = 8) -> Classifier:
    return convlens.wrap(module, size=size)


# ---- known architectures


def test_the_default_model_goes_from_its_classifier_down_its_blocks_to_its_stem() -> None:
    assert names(stages(convlens.load("packaged:efficientnet_lite0", device="cpu"))) == [
        "classifier",
        "conv_head to blocks.6",
        "blocks.5",
        "blocks.4",
        "blocks.3",
        "blocks.2",
        "blocks.1 to blocks.0",
        "conv_stem",
    ]


# Read off torchvision's definitions.
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "resnet18": (torchvision.models.resnet18, ["fc", "layer4", "layer3", "layer2", "layer1", "conv1"]),
    "alexnet": (
        torchvision.models.alexnet,
        [*(f"classifier.{n}" for n in (6, 4, 1)), *(f"features.{n}" for n in (10, 8, 6, 3, 0))],
    ),
    "squeezenet1_0": (
        torchvision.models.squeezenet1_0,
        ["classifier", *(f"features.{n}" for n in (12, 10, 9, 8, 7, 5, 4, 3, 0))],
    ),
    "vgg11": (
        partial(torchvision.models.vgg11, init_weights=False),
        [*(f"classifier.{n}" for n in (6, 3, 0)), *(f"features.{n}" for n in (18, 16, 13, 11, 8, 6, 3, 0))],
    ),
    "densenet121": (
        torchvision.models.densenet121,
        [
            "classifier",
            "features.denseblock4",
            "features.transition3",
            "features.denseblock3",
            "features.transition2",
            "features.denseblock2",
            "features.transition1",
            "features.denseblock1",
            "features.conv0",
        ],
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stages_are_the_blocks_of_known_networks(name: str) -> None:
    make, wanted = ARCHITECTURES[name]
    assert names(stages(wrapped(make(), 64), most=20)) == wanted


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_at_most_eight_hold_every_parameter_once_and_keep_both_ends_alone(name: str) -> None:
    make, wanted = ARCHITECTURES[name]
    classifier = wrapped(make(), 64)
    found = stages(classifier)
    assert len(found) <= 8
    assert (found[0].name, found[-1].name) == (wanted[0], wanted[-1])
    held = [parameter for stage in found for parameter in stage.parameters]
    assert sorted(held) == sorted(name for name, _ in classifier.module.named_parameters())


def test_auxiliary_heads_which_do_not_run_are_left_out() -> None:
    found = stages(wrapped(torchvision.models.googlenet(init_weights=False), 64))
    assert not any("aux" in parameter for stage in found for parameter in stage.parameters)
    assert (found[0].name, found[-1].name) == ("fc", "conv1")


# ---- the order, and what belongs together


class Backwards(nn.Module):
    """Its parts are defined in another order than they run."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.late = nn.Conv2d(4, 4, 3, padding=1)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.early = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.late(self.early(self.first(x_NCHW)).relu()).mean((2, 3)))


def test_the_order_is_that_of_running_and_not_of_definition() -> None:
    assert names(stages(wrapped(Backwards()))) == ["head", "late", "early", "first"]


class Functional(nn.Module):
    """Weights of its own, in functions; types are read off them where they do not run."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Parameter(torch.randn(3, 4))
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.first(x_NCHW.to(self.last.dtype))
        x = F.linear(F.conv2d(x, self.kernel, padding=1).mean((2, 3)), self.last)
        return x.to(self.first.weight.dtype)


def test_weights_that_functions_use_are_stages_of_their_own() -> None:
    assert names(stages(wrapped(Functional()))) == ["last", "kernel", "first"]


class Bare(nn.Module):
    """No layer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Parameter(torch.randn(3, 4))
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.conv2d(x_NCHW, self.kernel).mean((2, 3)) @ self.head.T


def test_a_network_without_layers_shows_its_weights() -> None:
    assert names(stages(wrapped(Bare()))) == ["head", "kernel"]


def test_normalisation_belongs_to_what_runs_before_it_and_that_of_the_image_to_the_first_convolution() -> None:
    module = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    assert [(stage.name, stage.modules) for stage in stages(wrapped(module))] == [
        ("7", ("7",)),
        ("4", ("5", "4")),
        ("1", ("2", "1", "0")),
    ]


def test_a_network_within_a_network_is_opened() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backwards()
            self.classifier = nn.Linear(3, 2)

        def forward(self, x_NCHW: Tensor) -> Tensor:
            return self.classifier(self.backbone(x_NCHW).relu())

    wanted = ["classifier", "backbone.head", "backbone.late", "backbone.early", "backbone.first"]
    assert names(stages(wrapped(Outer()))) == wanted


def test_the_lightest_neighbours_are_joined_and_of_equal_ones_the_deepest() -> None:
    module = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(6)), nn.Flatten(), nn.Linear(3 * 64, 2))
    assert names(stages(wrapped(module), most=5)) == ["7", "5", "4 to 3", "2 to 1", "0"]


def test_a_linear_network_is_one_stage() -> None:
    assert names(stages(nets.classifier(nets.Linear(), classes=3, crop=4))) == ["head"]


# ---- what cannot be told apart


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.jit.trace
def test_a_scripted_part_is_one_stage() -> None:
    part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()
    traced = torch.jit.trace(part, torch.zeros(1, 3, 8, 8))
    found = stages(wrapped(nn.Sequential(traced, nn.Flatten(), nn.Linear(80, 3))))
    assert [(stage.name, len(stage.parameters)) for stage in found] == [("2", 2), ("0", 4)]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_network_that_is_scripted_as_a_whole_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval()
    classifier = wrapped(torch.jit.trace(module, torch.zeros(1, 3, 8, 8)))
    with pytest.raises(UnsupportedModelError, match="scripted as a whole"):
        stages(classifier)


def test_fewer_stages_than_three_are_refused() -> None:
    with pytest.raises(RequestError, match="use 3 or more"):
        stages(wrapped(Backwards()), most=2)


def test_a_network_that_uses_another_ones_weights_is_refused() -> None:
    class Borrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)

        def forward(self, x_NCHW: Tensor) -> Tensor:
            return F.conv2d(x_NCHW, torch.ones(2, 3, 3, 3)).mean((2, 3))

    with pytest.raises(UnsupportedModelError, match="none of the parameters"):
        stages(wrapped(Borrowing()))
