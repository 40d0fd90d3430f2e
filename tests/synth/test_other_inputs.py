"""Synthesis for networks of rectangles, of grey and of many channels."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from PIL import Image
from synthesis_runs import run_to_end
from torch import nn

from convlens import image
from convlens.errors import RequestError
from convlens.models import Classifier, wrap
from convlens.synth.adversarial import Fool
from convlens.synth.deepdream import Dream
from convlens.synth.feature_inversion import Invert
from convlens.synth.gradient_ascent import Ascent
from convlens.synth.gram_texture import Texture

SIZE = (18, 30)


class Linear(nn.Module):
    """Two classes, each the sum of all values times weights of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 1)
        self.head = nn.Conv2d(4, 2, SIZE)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(x_NCHW)).flatten(1)

    def weights(self) -> np.ndarray:
        """(2, C, H, W): each class's gradient by the image."""
        with torch.no_grad():
            return torch.einsum("kfhw,fc->kchw", self.head.weight, self.first.weight[..., 0, 0]).numpy()


def linear(channels: int, **options) -> Classifier:
    return wrap(
        nets.seeded(lambda: Linear(channels)).float(),
        **({"size": SIZE, "mean": [0.5] * channels, "std": [0.25] * channels} | options),
    )


def deep(channels: int) -> Classifier:
    def made() -> nn.Module:
        layers = nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

    return wrap(nets.seeded(made).float(), size=SIZE, mean=[0.5] * channels, std=[0.25] * channels)


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_the_picture_that_maximises_a_linear_class_is_its_weights(channels):
    """argmax of w·x − λ‖x‖² is w / 2λ, at the network's own size; drawn are the channels that are shown."""
    model, penalty = linear(channels), 0.05
    job = Ascent(
        classes=(1,), parameter="pixels", preset="simonyan", optimizer="adam", rate=0.02, steps=300, l2=penalty
    )
    run = job.begin(model)
    outcome = run_to_end(run)
    x_CHW, weights_CHW = run.x_NCHW[0].cpu().numpy(), model.module.weights()[1]
    assert x_CHW.shape == (channels, *SIZE)
    cosine = float((x_CHW * weights_CHW).sum() / np.linalg.norm(x_CHW) / np.linalg.norm(weights_CHW))
    assert cosine > 0.999
    (picture,) = outcome.images.values()
    expected = image.denormalise(x_CHW, model.spec)[..., [0, 0, 0] if channels == 1 else [0, 1, 2]]
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_the_default_preset_works_for_other_channels(channels):
    run = Ascent(classes=(2,), steps=3).begin(deep(channels))
    outcome = run_to_end(run)
    assert run.x_NCHW.shape == (1, channels, *SIZE)
    assert all(picture.shape == (*SIZE, 3) for picture in outcome.images.values())


@pytest.fixture
def photograph(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(60, 196, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    return str(tmp_path / "photograph.png")


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_fooling_picture_fools_after_the_models_own_preparation(channels, crop_mode, photograph):
    model = linear(channels, crop_mode=crop_mode)
    pixels = np.asarray(image.read(photograph))

    def predicted(picture: np.ndarray) -> int:
        x_CHW = image.prepare(Image.fromarray(picture), model.spec).x_CHW
        with torch.no_grad():
            return int(model.module(torch.from_numpy(x_CHW)[None]).argmax())

    target = 1 - predicted(pixels)
    outcome = run_to_end(Fool(picture=photograph, target=target, steps=60).begin(model))
    fooled = outcome.images["fooled"]
    assert fooled.shape == pixels.shape
    assert predicted(fooled) == target
    # nothing but what the network sees is changed
    seen = np.zeros(pixels.shape[:2], bool)
    left, top, right, bottom = image.prepare(Image.fromarray(pixels), model.spec).box
    seen[max(0, int(top) - 4) : int(bottom) + 5, max(0, int(left) - 4) : int(right) + 5] = True
    assert (fooled[~seen] == pixels[~seen]).all()


def test_the_change_of_a_grey_networks_picture_is_along_its_luma(photograph):
    """What a grey network sees of a change is its luma, so the least change weighs colours by ITU-R BT.601."""
    model = linear(1, size=(18, 30), resize=(18, 30), crop_mode="squash")
    pixels = np.asarray(image.read(photograph))
    target = 1 - run_label(model, pixels)
    outcome = run_to_end(Fool(picture=photograph, target=target, steps=200, margin=3.0).begin(model))
    change_C = np.abs(outcome.images["fooled"].astype(float) - pixels).mean((0, 1))
    assert change_C[1] > change_C[0] > change_C[2]  # .587, .299, .114


def run_label(model: Classifier, picture: np.ndarray) -> int:
    x_CHW = image.prepare(Image.fromarray(picture), model.spec).x_CHW
    with torch.no_grad():
        return int(model.module(torch.from_numpy(x_CHW)[None]).argmax())


def test_six_channels_cannot_be_fooled_by_an_rgb_picture(photograph):
    with pytest.raises(RequestError, match="takes 6 channels; a fooling picture is an RGB image"):
        Fool(picture=photograph, target=1).begin(linear(6))


JOBS = {
    "dream": lambda path: Dream(picture=path, layers=("2",), side=64, octaves=1, steps=2, tile=96, overlap=8),
    "texture": lambda path: Texture(source=path, layers=("0",), source_side=32, width=32, height=32, steps=2, scales=1),
    "inversion": lambda path: Invert(picture=path, layers=("0",), steps=2),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_grey_network_makes_grey_pictures_of_a_photograph(job, photograph):
    outcome = run_to_end(JOBS[job](photograph).begin(deep(1)))
    for picture in outcome.images.values():
        assert (picture[..., 0] == picture[..., 1]).all() and (picture[..., 0] == picture[..., 2]).all()


@pytest.mark.parametrize("job", ["dream", "texture"])
def test_a_photograph_is_refused_where_the_network_takes_six_channels(job, photograph):
    with pytest.raises(RequestError, match="takes 6 channels, and this job reads RGB images"):
        JOBS[job](photograph).begin(deep(6))


def test_features_of_six_channels_are_inverted_from_an_array(tmp_path):
    values_HWC = np.random.default_rng(0).integers(0, 65536, (*SIZE, 6), dtype=np.uint16)
    np.save(tmp_path / "scene.npy", values_HWC)
    run = Invert(picture=str(tmp_path / "scene.npy"), layers=("0",), steps=2).begin(deep(6))
    outcome = run_to_end(run)
    assert [picture.shape for picture in outcome.images.values()] == [(*SIZE, 3)]
