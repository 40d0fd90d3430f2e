"""Gradient ascent where the answer is known: linear units, dead units, presets by their source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import nets
import numpy as np
import pytest
import torch
from synthesis_runs import assert_resumes, run_to_end
from torch import Tensor, nn

from convlens.errors import RequestError, TargetError
from convlens.models import Classifier
from convlens.synth.gradient_ascent import Ascent, AscentRun
from convlens.synth.presets import PRESETS

SIDE = 16


def linear(weight: float = 0.01) -> Classifier:
    """Logits W x, of pictures of 16 pixels a side; W small enough for an optimum within what a picture can hold."""
    module = nets.seeded(lambda: nets.Linear(SIDE, classes=3)).float().requires_grad_(False)
    with torch.no_grad():
        module.head.weight.mul_(weight / module.head.weight.abs().max())
    return nets.classifier(module, classes=3, crop=SIDE)


def mixed() -> Classifier:
    return nets.classifier(nets.seeded(nets.Mixed).float().requires_grad_(False), classes=4, crop=SIDE)


def ended(job: Ascent, classifier: Classifier) -> AscentRun:
    work = job.begin(classifier)
    while work.done < work.total:
        work.step()
    return work


def cosine(one: Tensor, two: Tensor) -> float:
    return float(nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0))


@pytest.mark.parametrize("optimizer", ["adam", "gradient"])
def test_a_linear_unit_s_picture_is_its_weights_over_twice_the_penalty(optimizer: str) -> None:
    """argmax w·x − λ‖x‖² = w / 2λ."""
    classifier, penalty = linear(), 0.005
    # For plain ascent a step of the gradient over 4λ halves the distance; the rate counts in levels of 255.
    rate = 0.02 if optimizer == "adam" else 0.25 / penalty * (255 * 0.25) ** 2
    job = Ascent(
        classes=(1, 2), parameter="pixels", preset="simonyan", optimizer=optimizer, rate=rate, steps=400, l2=penalty
    )
    found = ended(job, classifier).x_NCHW
    for row, index in zip(found, (1, 2), strict=True):
        weights = classifier.module.head.weight[index]
        assert cosine(row, weights) > 0.999
        np.testing.assert_allclose(row.flatten(), weights / (2 * penalty), atol=0.02)


def test_a_normalised_step_moves_pixels_by_levels_whatever_the_gradient_s_scale() -> None:
    """The first step from grey: the rate in levels on average, along the weights."""
    for weight in (1e-4, 1e-2):
        classifier = linear(weight)
        job = Ascent(classes=(1,), preset="simonyan", optimizer="normalised", rate=5.0, l2=0.0, steps=1)
        found = ended(job, classifier).x_NCHW * 255 * 0.25
        assert float(found.abs().mean()) == pytest.approx(5.0, rel=1e-3)
        assert cosine(found, classifier.module.head.weight[1]) > 0.999


def test_fourier_ascent_of_a_linear_unit_is_its_weights_too() -> None:
    """Where pixels are far from black and white the sigmoid is nearly straight."""
    classifier = linear()
    job = Ascent(
        classes=(0,),
        decorrelated=False,
        steps=300,
        rate=0.02,
        l2=0.02,
        jitter=0,
        scale=0,
        rotate=0,
        grain=0,
        start="zeros",
    )
    assert cosine(ended(job, classifier).x_NCHW, classifier.module.head.weight[0]) > 0.99


def test_each_row_climbs_its_own_goal() -> None:
    classifier = mixed()
    work = Ascent(classes=(0, 1, 2, 3), steps=40, preset="simonyan").begin(classifier)
    first = work.step()
    while work.done < work.total:
        last = work.step()
    for name in classifier.spec.labels:
        assert last[name] > first[name]


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"layer": "first", "channels": (3,)}, lambda out: out[0, 3].mean()),
        ({"layer": "first", "channels": (5,), "y": 2, "x": 4}, lambda out: out[0, 5, 2, 4]),
        ({"layer": "first"}, lambda out: (out**2).mean() / 2),
        ({"layer": "head", "channels": (2,)}, lambda out: out[0, 2]),
    ],
)
def test_the_objective_is_the_channel_the_neuron_or_the_layer(
    options: dict[str, Any], value: Callable[[Tensor], Tensor]
) -> None:
    classifier = mixed()
    work = Ascent(steps=3, preset="simonyan", **options).begin(classifier)
    x_NCHW = work.x_NCHW
    with torch.no_grad():
        out = classifier.module.first(x_NCHW) if options["layer"] == "first" else classifier.module(x_NCHW)
    torch.testing.assert_close(work.step()["objective"], value(out))


def test_a_neuron_moves_no_pixel_that_it_does_not_see() -> None:
    """The first convolution sees 3 × 3 pixels."""
    job = Ascent(layer="first", channels=(1,), y=4, x=4, steps=5, preset="simonyan", l2=0.0)
    changed = (ended(job, mixed()).x_NCHW[0] != 0).any(0)
    seen = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    seen[3:6, 3:6] = True
    assert torch.equal(changed, seen)


class Dead(nn.Module):
    """A unit that zero, grey and small noise leave off: relu(x · 1 − 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 1, 1)
        with torch.no_grad():
            self.first.weight.fill_(1.0)
            self.first.bias.fill_(-1.0)
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1.0], [0.0]]))
            self.head.bias.zero_()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.first(x_NCHW).relu().mean((2, 3)))


@pytest.mark.parametrize(("redirect_steps", "reached"), [(0, False), (16, True)])
def test_a_dead_unit_is_reached_by_redirected_gradients_alone(redirect_steps: int, reached: bool) -> None:
    classifier = nets.classifier(nets.seeded(Dead).float().requires_grad_(False), classes=2, crop=SIDE)
    job = Ascent(classes=(0,), preset="simonyan", steps=40, redirect_steps=redirect_steps)
    work = ended(job, classifier)
    assert bool((classifier.module(work.x_NCHW)[0, 0] > 0.1).item()) is reached


def test_the_presets_are_those_of_the_sources() -> None:
    third = PRESETS["yosinski3"]
    assert (third.steps, third.decay, third.blur, third.blur_every) == (1000, 1e-4, 1.0, 4)
    assert (PRESETS["yosinski1"].norm_percentile, PRESETS["yosinski1"].steps) == (50.0, 500)
    assert (PRESETS["yosinski2"].decay, PRESETS["yosinski2"].norm_percentile) == (0.3, 20.0)
    assert PRESETS["yosinski4"].contribution_percentile == 90.0
    lucid = PRESETS["lucid"]
    assert (lucid.optimizer, lucid.rate, lucid.steps, lucid.parameter) == ("adam", 0.05, 512, "fourier")
    assert (lucid.jitter, lucid.scale, lucid.rotate, lucid.redirect_steps) == (12.0, 0.1, 10.0, 16)


def test_what_is_given_overrides_the_preset_and_nothing_else() -> None:
    found = Ascent(classes=(0,), preset="yosinski3", steps=7, blur=0.0).settings
    assert found == replace(PRESETS["yosinski3"], steps=7, blur=0.0)


@pytest.mark.parametrize("preset", [*PRESETS])
def test_every_preset_resumes_bit_by_bit(preset: str) -> None:
    job = Ascent(classes=(0, 2), preset=preset, steps=9, seed=4)
    assert_resumes(lambda: job.begin(mixed()), every=2)


def test_more_rows_than_go_at_once_are_the_same_rows() -> None:
    """Six classes go in two parts; movements and noise are each row's own."""
    classifier = mixed()
    job = Ascent(classes=(0, 1, 2, 3, 0, 1), preset="simonyan", steps=4, jitter=1.0)
    found = ended(job, classifier).x_NCHW
    few = ended(Ascent(classes=(0, 1, 2, 3), preset="simonyan", steps=4, jitter=0.0), classifier).x_NCHW
    still = ended(replace(job, jitter=0.0), classifier).x_NCHW
    torch.testing.assert_close(still[:4], few)
    torch.testing.assert_close(still[4:], few[:2])
    assert not torch.equal(found, still)


def test_it_starts_from_a_picture(saved: Callable[..., str]) -> None:
    path = saved(np.random.default_rng(0).integers(60, 200, (SIDE, SIDE, 3)))
    classifier = mixed()
    for parameter in ("fourier", "pixels"):
        work = Ascent(classes=(1,), start=path, parameter=parameter, preset="simonyan", steps=1).begin(classifier)
        np.testing.assert_allclose(
            work.snapshot()[:, :SIDE], np.asarray(__import__("PIL.Image").Image.open(path)), atol=1
        )


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({}, "classes", "needs classes, or a layer"),
        ({"classes": (1,), "layer": "first"}, "classes", "one of the two"),
        ({"classes": (1,), "channels": (2,)}, "layer", "name it"),
        ({"layer": "first", "channels": (2,), "y": 3}, "y", "y and x go together"),
        ({"layer": "first", "y": 3, "x": 3}, "channels", "name those"),
        ({"classes": (1,), "preset": "lucd"}, "preset", "did you mean lucid"),
        ({"classes": (1,), "blur": 1.0}, "blur", "works on pixels; use parameter=pixels"),
        ({"classes": (1,), "rate": 0.0}, "rate", "above 0"),
        ({"classes": (1,), "steps": 0}, "steps", "1 or more"),
        ({"classes": (1,), "size": 8}, "size", "from 16 to 4096"),
        ({"classes": (1,), "optimizer": "sgd"}, "optimizer", "there are: adam, gradient, normalised"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(options: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        Ascent(**options)
    assert caught.value.field == field


def test_what_the_network_does_not_have_is_refused_with_what_it_has() -> None:
    with pytest.raises(TargetError, match="no class labelled 'clas 1' among 4; did you mean class 1"):
        Ascent(classes=("clas 1",)).begin(mixed())
    with pytest.raises(RequestError, match="did you mean first"):
        Ascent(layer="frist", channels=(0,)).begin(mixed())
    with pytest.raises(RequestError, match=r"'first' has no channel 16; there are 0\.\.15"):
        Ascent(layer="first", channels=(16,)).begin(mixed())
    with pytest.raises(RequestError, match=r"has x of 0\.\.15; got 40"):
        Ascent(layer="first", channels=(1,), y=0, x=40).begin(mixed())
    with pytest.raises(RequestError, match=r"start: no picture /nowhere\.png"):
        Ascent(classes=(0,), start="/nowhere.png").begin(mixed())


@pytest.mark.slow
def test_on_the_default_model_a_class_is_reached(default_model: Classifier) -> None:
    """What the saved 8-bit pictures say."""
    outcome = run_to_end(Ascent(classes=("balloon", "goldfish"), preset="lucid", steps=48).begin(default_model))
    for target in outcome.facts["targets"]:
        assert target["probability"] >= 0.95
        assert target["rank"] == 0
    assert list(outcome.images) == ["00-balloon", "01-goldfish"]
    assert outcome.images["00-balloon"].shape == (224, 224, 3)
