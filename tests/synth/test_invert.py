"""Feature inversion: exact where a layer can be inverted, worse with depth, put away and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import skimage
import torch
from synthesis_runs import assert_resumes, reload_from_file, run_to_end
from torch import Tensor, nn

from convlens.errors import RequestError
from convlens.models import Classifier
from convlens.synth.feature_inversion import Invert, contrast_factor, with_contrast
from convlens.synth.lbfgs import ResumableLBFGS
from convlens.synth.step_gradient import StepGradient

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
SIDE = 8


class Invertible(nn.Module):
    """A layer of one pixel's colours, which any picture can be told from; and one that keeps their sum only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.narrow = nn.Conv2d(3, 1, 1)
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.first.weight.copy_(
                torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, -1.0], [1.0, 0.0, 1.0]])[:, :, None, None]
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.narrow(self.first(x_NCHW)).mean((2, 3)))


def invertible() -> Classifier:
    return nets.classifier(nets.seeded(Invertible).float().requires_grad_(False), classes=2, crop=SIDE)


def mixed() -> Classifier:
    return nets.classifier(nets.seeded(nets.Mixed).float().requires_grad_(False), classes=4, crop=SIDE)


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 236, (SIDE, SIDE, 3))


@pytest.mark.parametrize(
    ("parameter", "optimizer", "steps", "off"),
    [("pixels", "lbfgs", 60, 0), ("fourier", "lbfgs", 1500, 2), ("pixels", "sgd", 400, 12)],
)
def test_an_invertible_layer_gives_the_picture_back(
    saved: Callable[..., str], parameter: str, optimizer: str, steps: int, off: int
) -> None:
    """Without regularisers, to the last level of 8 bits by L-BFGS."""
    job = Invert(
        picture=saved(pixels()),
        layers=("first",),
        parameter=parameter,
        optimizer=optimizer,
        steps=steps,
        tv=(0.0,),
        norm=0.0,
    )
    outcome = run_to_end(job.begin(invertible()))
    found = outcome.images["00-first"].astype(int)
    assert np.abs(found - pixels()).max() <= off
    assert outcome.facts["layers"][0]["normalised_error"] < (1e-4 if off < 3 else 1e-2)


def test_a_layer_that_forgets_gives_another_picture_with_its_features(saved: Callable[..., str]) -> None:
    job = Invert(picture=saved(pixels()), layers=("narrow",), steps=60, tv=(0.0,), norm=0.0)
    outcome = run_to_end(job.begin(invertible()))
    assert outcome.facts["layers"][0]["normalised_error"] < 1e-3
    assert np.abs(outcome.images["00-narrow"].astype(int) - pixels()).max() > 30


def test_the_second_error_is_over_the_mean_distance_between_pictures(saved: Callable[..., str]) -> None:
    path, others = saved(pixels()), [saved(pixels(n), f"{n}.png") for n in (1, 2)]
    job = Invert(picture=path, layers=("first",), others=tuple(others), steps=1, tv=(0.0,), norm=0.0)
    classifier = invertible()
    outcome = run_to_end(job.begin(classifier))

    def features(picture: np.ndarray) -> np.ndarray:
        x = torch.tensor((picture / 255 - 0.5) / 0.25, dtype=torch.float32).permute(2, 0, 1)[None]
        return classifier.module.first(x).double().numpy().ravel()

    every = [features(pixels(n)) for n in range(3)]
    pairwise = np.mean([np.linalg.norm(every[a] - every[b]) for a, b in ((0, 1), (0, 2), (1, 2))])
    distance = np.linalg.norm(features(outcome.images["00-first"]) - every[0])
    (fact,) = outcome.facts["layers"]
    assert fact["error_over_pairwise"] == pytest.approx(distance / pairwise, rel=1e-4)
    assert fact["normalised_error"] == pytest.approx(distance**2 / (every[0] ** 2).sum(), rel=1e-4)


def test_a_faint_image_is_drawn_at_three_quarters_of_the_picture_s_contrast_about_its_mean() -> None:
    halves = np.repeat([[0, 1]], 8, axis=0).repeat(4, axis=1)[..., None].repeat(3, axis=2)
    picture, faint = (60 + 80 * halves).astype(np.uint8), (90 + 10 * halves).astype(np.uint8)  # σ 40 and 5
    factor = contrast_factor(faint, picture)
    assert factor == 6
    drawn = with_contrast(faint, factor)
    np.testing.assert_array_equal(np.unique(drawn), [65, 125])  # 95 ± 30


@pytest.mark.parametrize("level", [20, 40], ids=["half of it", "all of it"])
def test_an_image_that_is_not_faint_is_drawn_as_it_is(level: int) -> None:
    halves = np.repeat([[-1, 1]], 8, axis=0).repeat(4, axis=1)[..., None].repeat(3, axis=2)
    picture, other = (128 + 40 * halves).astype(np.uint8), (128 + level * halves).astype(np.uint8)
    assert contrast_factor(other, picture) == 1
    np.testing.assert_array_equal(with_contrast(other, 1.0), other)


def test_without_other_pictures_the_second_error_is_left_out(saved: Callable[..., str]) -> None:
    outcome = run_to_end(Invert(picture=saved(pixels()), layers=("first",), steps=1).begin(invertible()))
    assert outcome.facts["layers"][0]["error_over_pairwise"] is None


@pytest.mark.parametrize("optimizer", ["lbfgs", "sgd"])
def test_it_resumes_bit_by_bit(saved: Callable[..., str], optimizer: str) -> None:
    job = Invert(picture=saved(pixels()), layers=("first", "block"), optimizer=optimizer, steps=7, seed=3)
    assert_resumes(lambda: job.begin(mixed()), every=3)


def test_lbfgs_steps_are_torch_s_and_cost_fewer_evaluations() -> None:
    """Rosenbrock's valley: the same points as torch's own loop, nearly half of the evaluations."""

    def valley(x: Tensor) -> Tensor:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    start = torch.tensor([-1.2, 1.0, -0.5, 0.8], dtype=torch.float64)
    ours = ResumableLBFGS(start, StepGradient(lambda x: (valley(x), valley(x).detach())))
    theirs = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theirs],
        max_iter=1,
        max_eval=25,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=0.0,
        tolerance_change=0.0,
    )
    counted = 0

    def closure() -> Tensor:
        nonlocal counted
        counted += 1
        optimizer.zero_grad()
        value = valley(theirs)
        (theirs.grad,) = torch.autograd.grad(value, theirs)
        return value

    for _ in range(60):
        ours.step()
        optimizer.step(closure)
        torch.testing.assert_close(ours.x.detach(), theirs.detach(), atol=0, rtol=0)
    torch.testing.assert_close(ours.x.detach(), torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0)
    assert ours.evaluations < 0.75 * counted


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"tv": (1.0, 2.0)}, "layers", "those of layers; name these"),
        ({"layers": ("a", "b"), "tv": (1.0, 2.0, 3.0)}, "tv", "one for each of 2 layers"),
        ({"parameter": "wavelet"}, "parameter", "there are: fourier, pixels"),
        ({"optimizer": "adam"}, "optimizer", "there are: lbfgs, sgd"),
        ({"steps": 0}, "steps", "1 or more"),
        ({"beta": 0.0}, "beta", "above 0"),
        ({"norm": -1.0}, "norm", "0 or more"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        Invert(picture="x.png", **options)
    assert caught.value.field == field


def test_total_variation_weighs_more_from_layer_to_layer() -> None:
    """As in Mahendran and Vedaldi's table; what is given is taken instead."""
    weights = Invert(picture="x.png", layers=("a", "b", "c")).weights
    np.testing.assert_allclose(weights, (0.001, (0.001 * 20) ** 0.5, 20.0))
    assert Invert(picture="x.png", layers=("a", "b"), tv=(0.3,)).weights == (0.3, 0.3)
    assert Invert(picture="x.png", layers=("a", "b"), tv=(0.3, 0.5)).weights == (0.3, 0.5)


def test_an_unknown_layer_is_told_before_the_first_step(saved: Callable[..., str]) -> None:
    with pytest.raises(RequestError, match="did you mean first"):
        Invert(picture=saved(pixels()), layers=("first", "frist")).begin(mixed())
    with pytest.raises(RequestError, match="others: no picture"):
        run_to_end(Invert(picture=saved(pixels()), layers=("first",), others=("/no.png",), steps=1).begin(mixed()))


def test_on_real_weights_the_error_rises_with_depth_and_shallow_pictures_are_the_picture(
    default_model: Classifier,
) -> None:
    layers = ("conv_stem", "blocks.3.1", "blocks.6.0")
    job = Invert(picture=str(PHOTOGRAPHS / "chelsea.png"), layers=layers, steps=30)
    work = job.begin(default_model)
    half = work.total // 2
    while work.done < half:
        work.step()
    outcome = run_to_end(reload_from_file(work, job.begin(default_model)))
    errors = [fact["normalised_error"] for fact in outcome.facts["layers"]]
    assert errors == sorted(errors)
    assert errors[0] < 0.05
