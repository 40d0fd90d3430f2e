"""What a forward pass tells of a network, against what its paper or its source says."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from convlens.errors import ModelError
from convlens.models import load
from convlens.models.layer_discovery import discover_layers
from convlens.models.preprocessing import IMAGENET

FEED = replace(IMAGENET, crop=16, resize=16)


def small(*, classes: int = 3) -> nn.Sequential:
    head = nn.Linear(4 * 16 * 16, classes)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), head)


# Embedding width, embedding layer, Grad-CAM layer and its channels, first convolution: papers, torchvision's source.
KNOWN = {
    "torchvision:alexnet": (4096, "classifier.6", "avgpool", 256, "features.0"),
    "torchvision:vgg11": (4096, "classifier.6", "avgpool", 512, "features.0"),
    "torchvision:resnet18": (512, "fc", "layer4", 512, "conv1"),
    "torchvision:densenet121": (1024, "classifier", "features", 1024, "features.conv0"),
    "torchvision:googlenet": (1024, "fc", "inception5b", 1024, "conv1.conv"),
    "torchvision:inception_v3": (2048, "fc", "Mixed_7c", 2048, "Conv2d_1a_3x3.conv"),
    "torchvision:squeezenet1_0": (512, "classifier.1", "classifier.2", 1000, "features.0"),
    "torchvision:mobilenet_v2": (1280, "classifier.1", "features", 1280, "features.0.0"),
    "torchvision:shufflenet_v2_x1_0": (1024, "fc", "conv5", 1024, "conv1.0"),
    "torchvision:mnasnet0_5": (1280, "classifier.1", "layers", 1280, "layers.0"),
    "torchvision:regnet_x_400mf": (400, "fc", "trunk_output", 400, "stem.0"),
    "torchvision:convnext_tiny": (768, "classifier.2", "features", 768, "features.0.0"),
    "timm:resnet10t": (512, "fc", "layer4", 512, "conv1.0"),
    "timm:mobilenetv3_small_050": (1024, "classifier", "blocks", 288, "conv_stem"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_layers_found_are_those_of_the_paper(name: str) -> None:
    classifier = load(f"{name}:untrained", device="cpu")
    spec, module = classifier.spec, classifier.module
    width, embedding, attention, channels, first = KNOWN[name]
    assert (spec.embedding_layer, spec.gradcam_layer, spec.first_convolution) == (embedding, attention, first)
    assert spec.classes == 1000
    seen: dict[str, tuple[int, ...]] = {}
    module.get_submodule(embedding).register_forward_pre_hook(lambda _, x: seen.update(embedding=tuple(x[0].shape)))
    module.get_submodule(attention).register_forward_hook(lambda *call: seen.update(attention=tuple(call[2].shape)))
    with torch.no_grad():
        module(torch.zeros(1, 3, spec.crop, spec.crop))
    assert seen["embedding"][1] == width
    assert seen["attention"][1] == channels
    assert min(seen["attention"][2:]) > 1


def test_probing_leaves_the_network_as_it_was() -> None:
    module = small().train()
    before = copy.deepcopy(module.state_dict())
    state = torch.get_rng_state()
    found = discover_layers(module, FEED)
    assert (found.classes, found.embedding_layer, found.gradcam_layer, found.first_convolution) == (3, "3", "1", "0")
    assert all(not part._forward_hooks and part.training for part in module.modules())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Twice(nn.Module):
    """Calls its layers against the order of their registration, one of them twice, a head of another width last,
    and one of the right width before the one that counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Linear(4, 7)
        self.hint = nn.Conv2d(4, 2, 1)
        self.head = nn.Conv2d(4, 2, 1)
        self.late = nn.Conv2d(4, 4, 3)
        self.early = nn.Conv2d(3, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.late(self.late(self.early(x_NCHW)))
        self.hint(x_NCHW.mean((2, 3), keepdim=True))
        logits_NK: Tensor = self.head(self.pool(x_NCHW)).flatten(1)
        self.side(x_NCHW.mean((2, 3)))
        return logits_NK


def test_layers_are_found_by_the_order_of_calls_not_of_registration() -> None:
    found = discover_layers(Twice(), FEED)
    assert (found.first_convolution, found.gradcam_layer, found.embedding_layer) == ("early", "late", "head")


class Nothing(nn.Module):
    """Returns no logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        return {"loss": self.inner(x_NCHW).mean()}


class Normalised(nn.Module):
    """Probabilities that are made by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        exp_NK = self.inner(x_NCHW).exp()
        return exp_NK / exp_NK.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), "not a convolutional network"),
        (nn.Conv2d(3, 4, 3), r"a tensor \(2, 4, 14, 14\)"),
        (Nothing(), r"returns a dict .loss: ..., and which of it are the logits is not clear"),
        (Normalised(), "a softmax already, and where it is made was not found"),
        (nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten(), nn.Linear(4, 2)), "no layer gave a map larger than"),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2)),
            "failed on a batch of images of 2×3×16×16",
        ),
    ],
)
def test_what_is_no_convolutional_classifier_is_refused(module: nn.Module, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        discover_layers(module, FEED)
