"""Textures by Gram matrices: what the loss cannot see, where it is 0, and what it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nets
import numpy as np
import pytest
import torch
from synthesis_runs import assert_resumes, period_of, run_to_end, stripes
from torch import Tensor, nn

from convlens.errors import RequestError
from convlens.models import Classifier
from convlens.synth.gram_texture import GramLoss, Texture, gram
from convlens.synth.images import center_square

RANDOM = torch.Generator().manual_seed(0)


class Filters(nn.Module):
    """Random convolutions with a max pool: enough for stripes (Ustyuzhaninov et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 48, 11, padding=5, padding_mode="circular")
        self.pool = nn.MaxPool2d(2)
        self.second = nn.Conv2d(48, 32, 3, padding=1)
        self.head = nn.Linear(32, 2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.pool(self.first(x_NCHW).relu())
        return self.head(self.second(x).relu().mean((2, 3)))


def filters() -> Classifier:
    return nets.classifier(nets.seeded(Filters).float().requires_grad_(False), classes=2, crop=64)


def features(count: int = 5, places: tuple[int, int] = (4, 6)) -> Tensor:
    return torch.randn(2, count, *places, generator=RANDOM, dtype=torch.float64)


def test_a_gram_matrix_is_the_mean_of_products() -> None:
    f = features()
    wanted = np.zeros((2, 5, 5))
    for n in range(2):
        for i in range(4):
            for j in range(6):
                v = f[n, :, i, j].numpy()
                wanted[n] += np.outer(v, v) / 24
    np.testing.assert_allclose(gram(f).numpy(), wanted, atol=1e-12)


def test_it_is_the_same_however_the_numbers_lie() -> None:
    f = features().contiguous(memory_format=torch.channels_last)
    assert not f.is_contiguous()
    torch.testing.assert_close(gram(f), gram(f.contiguous()))


def test_it_does_not_see_where_things_are() -> None:
    f = features()
    order = torch.randperm(24, generator=RANDOM)
    moved = f.flatten(2)[:, :, order].view_as(f)
    torch.testing.assert_close(gram(moved), gram(f))
    torch.testing.assert_close(gram(torch.cat([f, f], 2)), gram(f))  # nor how many places there are


def test_the_loss_is_0_at_the_source_1_at_nothing_and_its_gradient_is_right() -> None:
    f = {"a": features()[:1], "b": features(3)[:1]}
    loss = GramLoss(f, {"a": 1.0, "b": 3.0})
    assert float(loss(f)) == 0.0
    assert float(loss({name: torch.zeros_like(one) for name, one in f.items()})) == pytest.approx(1.0)
    x = features()[:1].requires_grad_()
    assert torch.autograd.gradcheck(lambda a: loss({"a": a, "b": f["b"]}), (x,))


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.slow
def test_stripes_keep_their_period(saved: Callable[..., str], optimizer: str) -> None:
    job = Texture(
        source=saved(stripes(64, 8)),
        layers=("first", "pool"),
        source_side=64,
        height=64,
        width=96,
        scales=1,
        steps=40 if optimizer == "lbfgs" else 150,
        optimizer=optimizer,
    )
    outcome = run_to_end(job.begin(filters()))
    assert outcome.images["texture"].shape == (64, 96, 3)
    assert period_of(outcome.images["texture"]) == pytest.approx(8, rel=0.1)
    assert outcome.facts["fell_by"] > 10


def test_pooling_is_swapped_for_the_run_alone(saved: Callable[..., str]) -> None:
    classifier = filters()
    x_NCHW = torch.rand(1, 3, 64, 64, generator=RANDOM)
    before = classifier.module(x_NCHW)
    path = saved(np.random.default_rng(0).integers(0, 255, (64, 64, 3)))
    first = {}
    for pooling in ("average", "max"):
        job = Texture(
            source=path, layers=("pool",), source_side=64, height=64, width=64, scales=1, steps=2, pooling=pooling
        )
        first[pooling] = float(job.begin(classifier).step()["objective"])
    assert first["average"] != pytest.approx(first["max"], rel=1e-3)
    assert torch.equal(classifier.module(x_NCHW), before)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_it_resumes_bit_by_bit(saved: Callable[..., str], optimizer: str) -> None:
    job = Texture(
        source=saved(np.random.default_rng(0).integers(0, 255, (64, 70, 3))),
        layers=("first", "second"),
        source_side=64,
        height=64,
        width=80,
        scales=2,
        steps=5,
        optimizer=optimizer,
    )
    assert_resumes(lambda: job.begin(filters()), every=2)


def test_colours_stay_within_the_source_s(saved: Callable[..., str]) -> None:
    source = np.random.default_rng(0).integers(100, 150, (64, 64, 3))
    job = Texture(source=saved(source), layers=("first",), source_side=64, height=64, width=64, scales=1, steps=8)
    found = run_to_end(job.begin(filters())).images["texture"]
    assert found.min() >= source.min() - 1
    assert found.max() <= source.max() + 1


def test_the_center_square_is_cut_from_the_shorter_side() -> None:
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[:, 30:70] = 200
    assert center_square(picture, 40).shape == (40, 40, 3)
    assert (center_square(picture, 40) == 200).all()
    assert center_square(picture, 80).shape == (80, 80, 3)


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"weights": (1.0,)}, "layers", "those of layers; name these"),
        ({"layers": ("a", "b"), "weights": (1.0,)}, "weights", "2 layers need as many weights"),
        ({"height": 8}, "height", "from 32 to 4096"),
        ({"scales": 5}, "scales", "5 scales of 256 pixels end below 32"),
        ({"pooling": "mean"}, "pooling", "there are: average, max"),
        ({"optimizer": "sgd"}, "optimizer", "there are: lbfgs, adam"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        Texture(source="x.png", **options)
    assert caught.value.field == field


def test_an_empty_texture_is_refused(saved: Callable[..., str]) -> None:
    path = saved(np.full((64, 64, 3), 77))
    with pytest.raises(RequestError, match="of one colour: there is no texture in it"):
        Texture(source=path, layers=("first",), source_side=64).begin(filters())
