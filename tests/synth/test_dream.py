"""DeepDream: a layer whose dream is known in closed form, octaves, frames, real weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import skimage
import torch
from synthesis_runs import assert_resumes, run_to_end
from torch import Tensor, nn

from convlens.errors import RequestError
from convlens.models import Classifier
from convlens.synth.deepdream import Dream, octave_sizes, resize

CHELSEA = str(Path(skimage.__file__).parent / "data" / "chelsea.png")


class Same(nn.Module):
    """A layer that gives its input, and a head behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Identity()
        self.head = nn.Linear(3, 2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.first(x_NCHW).mean((2, 3)))


def same() -> Classifier:
    return nets.classifier(nets.seeded(Same).float().requires_grad_(False), classes=2, crop=48)


def mixed() -> Classifier:
    return nets.classifier(nets.seeded(nets.Mixed).float().requires_grad_(False), classes=4, crop=48)


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(90, 166, (height, width, 3))


@pytest.mark.parametrize("jitter", [0, 11])
def test_an_identity_layer_s_dream_is_its_picture_grown(saved: Callable[..., str], jitter: int) -> None:
    """The gradient of ½‖x‖² is x: each step adds x / mean|x| of the rate, wherever the picture was rolled to."""
    path = saved(pixels(50, 60))
    job = Dream(picture=path, layers=("first",), octaves=1, steps=3, rate=2.0, jitter=jitter)
    work = job.begin(same())
    x = (torch.tensor(pixels(50, 60), dtype=torch.float64).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
    for _ in range(3):
        x = x + x / x.abs().mean() * 2.0 / (255 * 0.25)
        work.step()
    np.testing.assert_allclose(work._x.numpy(), x.numpy(), atol=1e-5)


def test_the_objective_is_half_the_squared_activation_a_pixel(saved: Callable[..., str]) -> None:
    work = Dream(picture=saved(pixels(48, 48)), layers=("first",), octaves=1, steps=1).begin(same())
    x = (pixels(48, 48) / 255 - 0.5) / 0.25
    assert float(work.step()["objective"]) == pytest.approx((x**2).sum() / 2 / 48**2, rel=1e-4)


def test_strengths_weigh_the_layers(saved: Callable[..., str]) -> None:
    path = saved(pixels(48, 48))

    def objective(**options: Any) -> float:
        return float(Dream(picture=path, octaves=1, steps=1, jitter=0, **options).begin(mixed()).step()["objective"])

    first, block = objective(layers=("first",)), objective(layers=("block",))
    both = objective(layers=("first", "block"), strengths=(0.5, 2.0))
    assert both == pytest.approx(0.5 * first + 2 * block, rel=1e-4)


def test_a_guide_s_features_are_grown_where_they_are_most_alike(saved: Callable[..., str]) -> None:
    """Each place's objective is its largest product with a place of the guide."""
    picture, guide = pixels(48, 48), pixels(48, 48, seed=1)
    path, other = saved(picture), saved(guide, "guide.png")
    work = Dream(picture=path, guide=other, layers=("first",), octaves=1, steps=1, jitter=0).begin(same())
    a, g = (((one / 255 - 0.5) / 0.25).reshape(-1, 3) for one in (picture, np.asarray(_guide(other))))
    wanted = (a @ g.T).max(1).sum() / 48**2
    assert float(work.step()["objective"]) == pytest.approx(wanted, rel=1e-3)


def _guide(path: str) -> Any:
    """Guides are brought to 224 pixels."""
    from convlens.synth.images import read_rgb, resized

    return resized(read_rgb(path, field="guide"), (224, 224))


def test_sizes_grow_by_the_scale_up_to_the_picture_s() -> None:
    assert octave_sizes((300, 451), octaves=3, scale=1.5) == [(133, 200), (200, 301), (300, 451)]
    with pytest.raises(RequestError, match=r"451×300 is too small for 8 octaves of scale 1\.4: at most 6 octaves fit"):
        octave_sizes((300, 451), octaves=8, scale=1.4)
    with pytest.raises(RequestError, match="it should be 48 pixels or more each way"):
        octave_sizes((30, 451), octaves=1, scale=1.4)


def test_detail_of_each_octave_is_kept_in_the_next(saved: Callable[..., str]) -> None:
    """A rate of nearly nothing leaves the picture as it was: what shrinking loses comes back."""
    picture = pixels(96, 120)
    job = Dream(picture=saved(picture), layers=("first",), octaves=2, steps=1, rate=1e-4, jitter=0)
    np.testing.assert_allclose(run_to_end(job.begin(same())).images["dream"], picture, atol=1)
    # And what was dreamt small is there, enlarged: brighter by the same.
    strong = replace(job, rate=30.0)
    work = strong.begin(same())
    small = resize(work._original, work._sizes[0])
    work.step()
    grown = work._x - small
    placed = work._step_start() - work._original
    torch.testing.assert_close(placed, resize(grown, (96, 120)))


def test_tiles_change_nothing_where_they_see_far_enough(saved: Callable[..., str]) -> None:
    """The first convolution sees one pixel around its own."""
    path = saved(pixels(200, 230))
    job = Dream(picture=path, layers=("first",), octaves=1, steps=2, tile=512)
    whole, tiled = (replace(job, tile=tile, overlap=4).begin(mixed()) for tile in (512, 128))
    for work in (whole, tiled):
        for _ in range(2):
            work.step()
    torch.testing.assert_close(tiled._x, whole._x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames", [0, 3])
def test_a_dream_resumes_bit_by_bit(saved: Callable[..., str], frames: int) -> None:
    job = Dream(picture=saved(pixels(70, 80)), layers=("block", "first"), octaves=2, steps=3, frames=frames, seed=2)
    assert_resumes(lambda: job.begin(mixed()), every=2)


def test_frames_zoom_into_the_dream(saved: Callable[..., str]) -> None:
    job = Dream(
        picture=saved(pixels(64, 64)),
        layers=("first",),
        octaves=1,
        steps=1,
        frames=4,
        frame_steps=2,
        rate=1e-4,
        zoom=2.0,
    )
    outcome = run_to_end(job.begin(same()))
    assert len(outcome.frames) == 4
    wanted = resize(torch.tensor(pixels(64, 64), dtype=torch.float32).permute(2, 0, 1)[None], (128, 128))
    middle = wanted[0, :, 32:96, 32:96].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(outcome.frames[0], middle, atol=2)


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"strengths": (1.0,)}, "layers", "strengths weigh layers; name those"),
        ({"layers": ("a",), "strengths": (1.0, 2.0)}, "strengths", "1 layers need as many strengths"),
        ({"octaves": 0}, "octaves", "1 or more"),
        ({"octave_scale": 1.0}, "octave_scale", "above 1"),
        ({"rate": 0.0}, "rate", "above 0"),
        ({"jitter": -1}, "jitter", "0 or more"),
        ({"frames": 5000}, "frames", "at most 2000"),
        ({"side": 20}, "side", "48 or more"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        Dream(picture="x.png", **options)
    assert caught.value.field == field


def test_missing_pictures_and_layers_are_named(saved: Callable[..., str]) -> None:
    with pytest.raises(RequestError, match=r"picture: no picture /nowhere\.png"):
        Dream(picture="/nowhere.png", layers=("first",)).begin(same())
    with pytest.raises(RequestError, match="did you mean first"):
        Dream(picture=saved(pixels(64, 64)), layers=("firts",), octaves=1).begin(same())
    with pytest.raises(RequestError, match="too small for 4 octaves"):
        Dream(picture=saved(pixels(64, 64)), layers=("first",)).begin(same())


def test_on_real_weights_the_layer_s_energy_rises_threefold(default_model: Classifier) -> None:
    """Of the 8-bit picture."""
    outcome = run_to_end(Dream(picture=CHELSEA, side=224, layers=("blocks.3.1",), octaves=3).begin(default_model))
    assert outcome.facts["energy_ratio"] >= 3
    assert outcome.images["dream"].shape == (149, 224, 3)
