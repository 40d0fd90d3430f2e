"""Layers that jobs take by default: found from the network, whatever they are called, and written into the job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import torch
import yaml
from synthesis_runs import run_to_end
from torch import Tensor, nn
from torch.nn import functional

from convlens.errors import RequestError
from convlens.instrument import find_memory_format, tapped
from convlens.jobs import run_job
from convlens.models import Classifier, load
from convlens.synth.base import Job
from convlens.synth.deepdream import Dream
from convlens.synth.feature_inversion import Invert
from convlens.synth.gradient_ascent import Ascent
from convlens.synth.gram_texture import Texture
from convlens.synth.trunk import dream_layers, inversion_layers, texture_layers, trunk

NETWORKS = (
    "torchvision:vgg11",
    "torchvision:resnet18",
    "torchvision:squeezenet1_1",
    "torchvision:densenet121",
    "torchvision:mobilenet_v2",
    "timm:convnext_tiny",
)


class TwoLetters(nn.Module):
    """Convolutions ``a`` and ``b`` with functional pooling, and a head that fits images of 32×32 only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.c = nn.Linear(6 * 8 * 8, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = functional.max_pool2d(functional.relu(self.a(x_NCHW)), 2)
        x_NCHW = functional.max_pool2d(functional.relu(self.b(x_NCHW)), 2)
        return self.c(x_NCHW.view(x_NCHW.size(0), -1))


class Branches(nn.Module):
    """Two towers from the image to the outputs: no layer carries everything."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(3, 4, 5, stride=4)
        self.head = nn.Linear(8, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        towers = [tower(x_NCHW).relu().mean((2, 3)) for tower in (self.left, self.right)]
        return self.head(torch.cat(towers, 1))


class NoMap(nn.Module):
    """The first layer has one window as large as the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 32), nn.Linear(4, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.first(x_NCHW).flatten(1))


class NoGradient(TwoLetters):
    def forward(self, x_NCHW: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x_NCHW)


def small(kind: type[nn.Module]) -> Classifier:
    classifier = nets.classifier(nets.seeded(kind).float().requires_grad_(False), classes=3, crop=32)
    find_memory_format(classifier.module, torch.zeros(1, 3, 32, 32))  # as loading does
    return classifier


def untrained(name: str, size: int = 64) -> Classifier:
    with torch.random.fork_rng():  # timm draws the weights that are replaced
        return load(f"{name}:untrained?size={size}&resize={size}", device="cpu")


def pixels(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 196, (side, side, 3))


# ---- the layers


def test_the_default_model_keeps_the_layers_that_its_results_were_made_with(default_model: Classifier) -> None:
    assert dream_layers(default_model) == ("blocks.4.2",)
    assert inversion_layers(default_model) == ("conv_stem", "blocks.1.1", "blocks.3.1", "blocks.5.1", "blocks.6.0")
    assert texture_layers(default_model) == (
        *("conv_stem", "blocks.0.0", "blocks.1.0", "blocks.1.1", "blocks.2.0", "blocks.2.1"),
    )


def test_the_layers_of_a_resnet_are_its_stem_and_its_blocks() -> None:
    names = [layer.name for layer in trunk(untrained("torchvision:resnet18"))]
    assert names == ["conv1", "maxpool", *(f"layer{n}.{m}" for n in (1, 2, 3, 4) for m in (0, 1))]


def test_a_texture_of_vgg_takes_the_first_convolution_and_the_pools_as_gatys_does() -> None:
    chosen = texture_layers(untrained("torchvision:vgg19"))
    assert set(chosen) >= {"features.0", "features.4", "features.9", "features.18"}  # conv1_1 and pool1 to pool3


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "mobilenetv2_100", "regnetx_002"])
def test_a_dream_s_layer_gives_what_timm_calls_the_features_at_stride_16(name: str) -> None:
    classifier = untrained(f"timm:{name}")
    x_NCHW = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    place = [entry["reduction"] for entry in classifier.module.feature_info].index(16)
    (layer,) = dream_layers(classifier)
    with torch.no_grad(), tapped(classifier.module, outputs=[layer]) as tap:
        tap.module(x_NCHW)
        wanted = classifier.module.forward_intermediates(x_NCHW, intermediates_only=True)[place]
    torch.testing.assert_close(tap.outputs[layer], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_path_from_the_image_passes_through_each_layer_of_the_trunk(name: str) -> None:
    """With the layer's output cut from its history, no gradient reaches the image."""
    classifier = untrained(name)
    layers = trunk(classifier)
    assert len(layers) >= 8
    for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
        x_NCHW = torch.zeros(1, 3, 64, 64, requires_grad=True)
        module = classifier.module.get_submodule(layer.name)
        handle = module.register_forward_hook(lambda _, __, output: output.detach())
        try:
            assert not classifier.module(x_NCHW).requires_grad
        finally:
            handle.remove()


def test_names_play_no_part() -> None:
    two = small(TwoLetters)
    assert [layer.name for layer in trunk(two)] == ["a", "b"]
    assert dream_layers(two) == ("a",)  # the last of the first resolution: b is the coarsest
    assert inversion_layers(two) == texture_layers(two) == ("a", "b")


def test_where_branches_run_beside_each_other_all_layers_count() -> None:
    assert {layer.name for layer in trunk(small(Branches))} == {"left", "right"}


@pytest.mark.parametrize(
    ("kind", "said"), [(NoMap, "no convolution or pooling of test:net gives a map"), (NoGradient, "no gradient")]
)
def test_a_network_without_a_layer_to_take_is_refused(kind: type[nn.Module], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        trunk(small(kind))


def test_the_search_leaves_the_network_as_it_was() -> None:
    two = small(TwoLetters)
    before = {name: value.clone() for name, value in two.module.state_dict().items()}
    trunk(two)
    assert not any(part._forward_hooks for part in two.module.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in two.module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in two.module.state_dict().items())


# ---- jobs on any network


def jobs(picture: str) -> list[Job]:
    return [
        Dream(picture=picture, octaves=1, steps=1),
        Invert(picture=picture, steps=1),
        Texture(source=picture, source_side=32, height=48, width=40, scales=1, steps=1),
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_dream_inversion_and_texture_run_on_any_network(name: str, saved: Callable[..., str]) -> None:
    classifier = untrained(name)
    for job in jobs(saved(pixels(56))):
        (image, *_) = run_to_end(job.begin(classifier)).images.values()
        assert image.std() > 0


def test_jobs_need_no_head_that_takes_their_images(saved: Callable[..., str]) -> None:
    """The head fits 32×32; dreams of 56×56, textures of 48×40 and images of a channel of 40×40 are made without it."""
    two = small(TwoLetters)
    dream, inversion, texture = (run_to_end(job.begin(two)) for job in jobs(saved(pixels(56))))
    assert dream.images["dream"].shape == (56, 56, 3)
    assert len(inversion.images) == 2
    assert texture.images["texture"].shape == (48, 40, 3)
    ascent = run_to_end(Ascent(layer="b", channels=(1,), size=40, steps=2).begin(two))
    (image,) = ascent.images.values()
    assert image.shape == (40, 40, 3)
    assert ascent.facts["targets"][0]["predicted"] is None
    assert ascent.facts["without_predictions"] == "the head of test:net takes images of 32×32 only"


def test_a_class_is_maximised_at_the_size_of_the_head() -> None:
    with pytest.raises(RequestError, match="takes images of 32×32 only; leave size out, or maximise a layer"):
        Ascent(classes=(1,), size=40, steps=1).begin(small(TwoLetters))
    assert run_to_end(Ascent(classes=(1,), steps=1).begin(small(TwoLetters))).facts["targets"][0]["rank"] in (0, 1, 2)


def _description(out: Path) -> dict[str, Any]:
    description: dict[str, Any] = yaml.safe_load((out / "job.yaml").read_text())
    return description


def test_a_job_s_folder_names_the_layers_that_were_taken(tmp_path: Path, saved: Callable[..., str]) -> None:
    notes: list[str] = []
    model, out = "torchvision:squeezenet1_1:untrained?size=64&resize=64", tmp_path / "out"
    job = Dream(picture=saved(pixels(56)), octaves=1, steps=1, model=model)
    run_job(job, out, device="cpu", on_progress=lambda progress: notes.append(progress.note))
    layers = list(dream_layers(load(model, device="cpu")))
    assert _description(out)["layers"] == json.loads((out / "manifest.json").read_text())["job"]["layers"] == layers
    assert f"layers: {layers[0]}" in notes
    assert layers[0] in (out / "index.html").read_text()


def test_a_job_that_names_the_default_layers_is_the_same_job(tmp_path: Path, saved: Callable[..., str]) -> None:
    model, out = "torchvision:squeezenet1_1:untrained?size=64&resize=64", tmp_path / "out"
    options: dict[str, Any] = {"picture": saved(pixels(56)), "octaves": 1, "steps": 1, "model": model}
    run_job(Dream(**options), out, device="cpu")
    layers = dream_layers(load(model, device="cpu"))
    dreamt = (out / "dream.png").read_bytes()
    run_job(Dream(layers=layers, **options), out, device="cpu")  # is done already: another job would be refused
    run_job(Dream(layers=layers, **options), tmp_path / "other", device="cpu")
    assert (tmp_path / "other" / "dream.png").read_bytes() == dreamt
