"""Fooling images: the nearest picture of a linear network is known; what is saved is what fools."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from synthesis_runs import assert_resumes, run_to_end

from convlens import image
from convlens.errors import RequestError, TargetError
from convlens.models import Classifier
from convlens.synth.adversarial import Fool, amplification

CHELSEA = Path(skimage.__file__).parent / "data" / "chelsea.png"
SIDE = 16


def linear() -> Classifier:
    module = nets.seeded(lambda: nets.Linear(SIDE, classes=3)).float().requires_grad_(False)
    return nets.classifier(module, classes=3, crop=SIDE)


def pixels(size: tuple[int, int] = (SIDE, SIDE), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 196, (*size, 3)).astype(np.uint8)


def logits(classifier: Classifier, picture: np.ndarray) -> np.ndarray:
    x_CHW = image.prepare(Image.fromarray(picture), classifier.spec).x_CHW
    with torch.no_grad():
        return classifier.module(torch.as_tensor(x_CHW)[None])[0].double().numpy()


def another(classifier: Classifier, picture: np.ndarray) -> int:
    return int(logits(classifier, picture).argsort()[-2])


def test_the_change_of_a_linear_network_s_picture_is_nearly_the_least(saved: Callable[..., str]) -> None:
    """To lead by m the nearest picture lies (gap + m) / ‖w_t − w_o‖ away; rounding to 8 bits adds a little."""
    classifier, picture = linear(), pixels()
    target = another(classifier, picture)
    said = logits(classifier, picture)
    original = int(said.argmax())
    apart = classifier.module.head.weight[target] - classifier.module.head.weight[original]
    in_levels = apart.double().numpy() / (255 * 0.25)
    margin = 1.0
    least = (said[original] - said[target] + margin) / np.linalg.norm(in_levels)
    outcome = run_to_end(Fool(picture=saved(picture), target=target, margin=margin, steps=200).begin(classifier))
    found = np.sqrt(((outcome.images["fooled"].astype(float) - picture) ** 2).sum())
    # Rounding moves each value by up to half a level, which is as much as the change itself here.
    assert least <= found + 1e-6
    assert found < least + 0.6 * np.sqrt(picture.size)
    change = (outcome.images["fooled"].astype(float) - picture).transpose(2, 0, 1).ravel()
    assert change @ in_levels / np.linalg.norm(change) / np.linalg.norm(in_levels) > 0.7


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("size", [(16, 16), (23, 31), (40, 20)])
def test_the_picture_as_saved_is_taken_for_the_target_whatever_its_size(
    saved: Callable[..., str], norm: str, size: tuple[int, int]
) -> None:
    """Written as a PNG, read again, resized and cropped as any picture is."""
    classifier, picture = linear(), pixels(size, seed=3)
    target = another(classifier, picture)
    outcome = run_to_end(Fool(picture=saved(picture), target=target, norm=norm, steps=120).begin(classifier))
    stored = io.BytesIO(image.encode_png(outcome.images["fooled"]))
    read = np.asarray(Image.open(stored))
    assert read.shape == picture.shape
    assert logits(classifier, read).argmax() == target
    assert outcome.facts["after"][0]["index"] == target
    difference = read.astype(float) - picture
    assert outcome.facts["psnr_db"] == pytest.approx(10 * np.log10(255**2 / (difference**2).mean()))
    assert outcome.facts["largest_change_levels"] == np.abs(difference).max()


def test_a_bound_is_kept_or_said_to_be_too_small(saved: Callable[..., str]) -> None:
    classifier, picture = linear(), pixels()
    job = Fool(picture=saved(picture), target=another(classifier, picture), norm="linf", steps=100)
    needed = run_to_end(job.begin(classifier)).facts["largest_change_levels"]
    kept = run_to_end(replace(job, bound=float(needed)).begin(classifier))
    assert kept.facts["largest_change_levels"] <= needed
    far = replace(job, bound=0.5)
    with pytest.raises(RequestError, match="no picture within the bound was taken for 'class") as caught:
        run_to_end(far.begin(classifier))
    assert caught.value.field == "bound"


@pytest.mark.parametrize(("level", "factor"), [(1, 50), (2, 20), (4, 20), (9, 10), (60, 10)])
def test_a_difference_is_amplified_by_the_largest_round_factor_that_keeps_it_within_the_greys(
    level: int, factor: int
) -> None:
    difference = np.zeros((20, 30, 3))
    difference[::2] = level
    difference[1, 1] = -200  # one pixel may be cut off
    assert amplification(difference) == factor


def test_it_resumes_bit_by_bit(saved: Callable[..., str]) -> None:
    picture = pixels((20, 24))
    job = Fool(picture=saved(picture), target=another(linear(), picture), steps=40)
    assert_resumes(lambda: job.begin(linear()), every=7)


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"norm": "l1"}, "norm", "there are: l2, linf"),
        ({"steps": 0}, "steps", "1 or more"),
        ({"bound": 0.0}, "bound", "above 0"),
        ({"margin": -1.0}, "margin", "0 or more"),
        ({"side": 4}, "side", "from 32 to 4096"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        Fool(picture="x.png", target=1, **options)
    assert caught.value.field == field


def test_unknown_classes_and_what_the_picture_is_already_are_refused(saved: Callable[..., str]) -> None:
    classifier, picture = linear(), pixels()
    path = saved(picture)
    with pytest.raises(TargetError, match="did you mean class 1"):
        Fool(picture=path, target="clas 1").begin(classifier)
    with pytest.raises(RequestError, match="already; choose another target"):
        Fool(picture=path, target=int(logits(classifier, picture).argmax())).begin(classifier)


def test_on_the_default_model_a_cat_becomes_a_koala(default_model: Classifier) -> None:
    """Invisibly: trials reached 46 to 48 dB."""
    outcome = run_to_end(Fool(picture=str(CHELSEA), target="koala", steps=50).begin(default_model))
    assert logits(default_model, outcome.images["fooled"]).argmax() == 105
    assert outcome.facts["psnr_db"] >= 48
    # Two tiles of 451 pixels beside each other, and two below: in one row letters could not be read on a page.
    height, width = outcome.figures["figure"].shape[:2]
    assert 2 * 451 <= width <= 1200 and height >= 2 * 300
