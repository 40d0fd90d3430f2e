"""Networks of one channel, of four, of rectangles: what jobs read, make and show."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import nets
import numpy as np
import pytest
import torch
from synthesis_runs import run_to_end
from torch import Tensor, nn

from convlens.errors import ImageError, RequestError
from convlens.models import Classifier
from convlens.synth.adversarial import Fool
from convlens.synth.base import Job
from convlens.synth.deepdream import Dream
from convlens.synth.feature_inversion import Invert
from convlens.synth.gradient_ascent import Ascent
from convlens.synth.gram_texture import Texture
from convlens.synth.images import rank_classes, shown, to_tensor, to_uint8


class Net(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 4, 3, stride=2), nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.second(self.first(x_NCHW).relu()).relu().mean((2, 3)))


def of(channels: int) -> Classifier:
    classifier = nets.classifier(nets.seeded(lambda: Net(channels)).float().requires_grad_(False), classes=3, crop=32)
    spec = replace(classifier.spec, mean=(0.5,) * channels, std=(0.25,) * channels)
    return replace(classifier, spec=spec)


def pixels(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 196, (side, side, 3)).astype(np.uint8)


def jobs(picture: str) -> list[Job]:
    return [
        Dream(picture=picture, octaves=1, steps=1),
        Invert(picture=picture, steps=1),
        Texture(source=picture, source_side=32, height=48, width=40, scales=1, steps=1),
        Fool(picture=picture, target=0, steps=8),
    ]


def test_a_network_of_one_channel_sees_the_grey_of_a_picture() -> None:
    red, green, blue = (pixels(8)[:, :, n].astype(float) for n in range(3))
    grey = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R 601-2
    x_1CHW = to_tensor(pixels(8), of(1).spec, torch.device("cpu"))
    assert x_1CHW.shape == (1, 1, 8, 8)
    np.testing.assert_allclose(x_1CHW[0, 0] * 0.25 * 255 + 127.5, grey, atol=0.51)


@pytest.mark.parametrize("which", range(4))
def test_jobs_run_on_a_network_of_one_channel(which: int, saved: Callable[..., str]) -> None:
    classifier = of(1)
    job = jobs(saved(pixels(56)))[which]
    if isinstance(job, Fool):
        # The class that it takes the picture for is no target.
        x_1CHW = torch.nn.functional.interpolate(to_tensor(pixels(56), classifier.spec, classifier.device), (32, 32))
        job = replace(job, target=int(classifier.module(x_1CHW).argmin()))
        run = job.begin(classifier)
        values = [float(run.step()["objective"]) for _ in range(job.steps)]
        assert values[-1] > values[0]
        return
    (image, *_) = run_to_end(job.begin(classifier)).images.values()
    if not isinstance(job, Invert):
        assert (image == image[:, :, :1]).all()  # grey
    assert image.shape[2] == 3


@pytest.mark.parametrize("which", range(4))
def test_a_network_of_four_channels_is_refused_by_jobs_that_read_pictures(
    which: int, saved: Callable[..., str]
) -> None:
    with pytest.raises((RequestError, ImageError), match="takes 4 channels"):
        jobs(saved(pixels(56)))[which].begin(of(4))


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("parameter", ["fourier", "pixels"])
def test_a_class_of_a_network_of_any_number_of_channels_is_maximised(channels: int, parameter: str) -> None:
    classifier = of(channels)
    # Without random transforms, so that each step is seen in the next one's value.
    still = {"jitter": 0.0, "scale": 0.0, "rotate": 0.0}
    run = Ascent(classes=(1,), steps=12, preset="lucid", parameter=parameter, **still).begin(classifier)
    values = [float(run.step()["objective"]) for _ in range(12)]
    assert values[-1] > values[0]
    outcome = run.finish()
    (image,) = outcome.images.values()
    assert image.shape == (32, 32, 3)
    rounded = torch.round((run.x_NCHW * 0.25 + 0.5).clamp(0, 1) * 255) / 255
    with torch.no_grad():
        logits_K = classifier.module((rounded - 0.5) / 0.25)[0]
    assert outcome.facts["targets"][0]["logit"] == pytest.approx(float(logits_K[1]), abs=1e-4)


def test_probabilities_are_those_of_the_network_s_activation() -> None:
    classifier = of(3)
    classifier = replace(classifier, spec=replace(classifier.spec, activation="sigmoid"))
    x_1CHW = to_tensor(pixels(32), classifier.spec, classifier.device)
    with torch.no_grad():
        wanted = {k: 1 / (1 + math.exp(-logit)) for k, logit in enumerate(classifier.module(x_1CHW)[0].tolist())}
    assert {k: p for k, _, p, _ in rank_classes(classifier, x_1CHW)} == pytest.approx(wanted, abs=1e-6)


def test_a_network_without_classes_has_its_layers_maximised_and_predicts_nothing() -> None:
    classifier = of(3)
    classifier = replace(classifier, spec=replace(classifier.spec, labels=()))
    facts = run_to_end(Ascent(layer="second", channels=(0,), steps=2).begin(classifier)).facts
    assert facts["targets"][0]["predicted"] is None
    assert facts["without_predictions"] == "it has no classes"


def test_the_display_channels_are_shown() -> None:
    x_NCHW = torch.stack([torch.full((2, 2), value) for value in (-2.0, -1.0, 0.0, 2.0)])[None]
    spec = of(4).spec
    (first_three,) = shown(to_uint8(x_NCHW, spec), spec)
    (chosen,) = shown(to_uint8(x_NCHW, spec), replace(spec, display_channels=(3, 1, 0)))
    assert first_three[0, 0].tolist() == [0, 64, 128]  # (x · .25 + .5) · 255, halves to even
    assert chosen[0, 0].tolist() == [255, 64, 0]
