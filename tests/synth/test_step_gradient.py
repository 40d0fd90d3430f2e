"""A step that is replayed without its Python gives what the step itself gives, for every kind of job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from convlens.models import Classifier, load
from convlens.synth import step_gradient
from convlens.synth.base import Job
from convlens.synth.deepdream import Dream
from convlens.synth.feature_inversion import Invert
from convlens.synth.gradient_ascent import Ascent
from convlens.synth.gram_texture import Texture
from convlens.synth.step_gradient import StepGradient

STEPS = 7


class Replay:
    """Stands in for a CUDA graph: the operations of one run on the tensors they ran on, and none of its Python."""

    def __init__(self, action: Callable[[], tuple[Tensor, ...]]) -> None:
        self._traced = make_fx(action, pre_dispatch=False)()
        self.outputs = tuple(output.clone() for output in self._traced())
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for held, value in zip(self.outputs, self._traced(), strict=True):
            held.copy_(value)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Replay]:
    """Steps are replayed on the CPU as they are on a GPU; the graphs that were captured."""
    made: list[Replay] = []

    def capture(action: Callable[[], Any]) -> tuple[Replay, Any]:
        made.append(Replay(action))
        return made[-1], made[-1].outputs

    monkeypatch.setattr(step_gradient, "capture", capture)
    monkeypatch.setattr(step_gradient, "_replays", lambda device: True)
    return made


@pytest.fixture(scope="module")
def default() -> Classifier:
    return load("packaged:efficientnet_lite0", device="cpu")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)).save(path)
    return str(path)


def jobs(picture: str) -> dict[str, Job]:
    small: dict[str, Any] = {"size": 64, "steps": STEPS}
    return {
        "classes": Ascent(classes=(3, 285, 7, 9, 11), redirect_steps=0, **small),
        "redirected": Ascent(layer="blocks.2.1", channels=(1, 5), redirect_steps=STEPS, **small),
        "lucid": Ascent(layer="blocks.2.1", channels=(1,), preset="lucid", settle=0.5, **small),
        "yosinski": Ascent(classes=(3,), preset="yosinski1", **small),
        "dream": Dream(picture=picture, layers=("blocks.2.1",), octaves=1, steps=STEPS),
        "guided dream": Dream(picture=picture, guide=picture, layers=("blocks.2.1",), octaves=1, steps=STEPS),
        "inversion": Invert(picture=picture, layers=("blocks.1.1",), steps=STEPS),
        "inversion by descent": Invert(picture=picture, layers=("blocks.1.1",), steps=STEPS, optimizer="sgd"),
        "texture": Texture(source=picture, source_side=64, height=64, width=64, scales=1, steps=STEPS),
        "texture by Adam": Texture(
            source=picture, source_side=64, height=64, width=64, scales=1, steps=STEPS, optimizer="adam"
        ),
    }


def made(job: Job, classifier: Classifier) -> tuple[list[float], np.ndarray]:
    run = job.begin(classifier)
    losses = [float(run.step()["objective"]) for _ in range(STEPS)]
    return losses, run.snapshot().astype(int)


@pytest.mark.parametrize("name", list(jobs("")))
def test_replayed_steps_make_the_same_picture(
    name: str, picture: str, default: Classifier, replays: list[Replay], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs(picture)[name]
    found_losses, found = made(job, default)
    assert sum(replay.replays for replay in replays) >= STEPS - 4, "hardly a step was replayed"
    monkeypatch.undo()
    losses, expected = made(job, default)
    np.testing.assert_allclose(found_losses, losses, rtol=1e-3)
    assert np.abs(found - expected).mean() < 0.5, "levels of 255"


# ---- by itself


def weighed(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Σ w x³ and the summands; the gradient is 3 w x²."""
    parts = weight * x**3
    return parts.sum(), parts


@pytest.mark.parametrize("calls", [1, 2, 3, 4, 6])
def test_value_parts_and_gradient_are_those_of_the_function(calls: int, replays: list[Replay]) -> None:
    step = StepGradient(weighed)
    for n in range(calls):
        x, weight = torch.arange(4.0) + n, torch.tensor([1.0, -2.0, 0.5, n])
        total, parts, gradient = step(x, weight)
        torch.testing.assert_close(total, (weight * x**3).sum())
        torch.testing.assert_close(parts, weight * x**3)
        torch.testing.assert_close(gradient, 3 * weight * x**2)
        assert not x.requires_grad
    assert len(replays) == (calls > 2)


def test_results_stay_when_the_next_step_is_made(replays: list[Replay]) -> None:
    step, weight = StepGradient(weighed), torch.ones(3)
    found = [step(torch.full((3,), float(n)), weight)[2] for n in range(6)]
    for n, gradient in enumerate(found):
        torch.testing.assert_close(gradient, torch.full((3,), 3.0 * n * n))


def test_another_shape_is_captured_anew(replays: list[Replay]) -> None:
    step = StepGradient(weighed)
    for size in (3, 3, 3, 5, 5, 5, 5):
        _, _, gradient = step(torch.full((size,), 2.0), torch.ones(size))
        torch.testing.assert_close(gradient, torch.full((size,), 12.0))
    assert len(replays) == 2


def test_a_replay_that_differs_is_not_used(replays: list[Replay], caplog: pytest.LogCaptureFixture) -> None:
    """The function depends on a number that changes between the calls, which no graph can know."""
    factor = [1.0]

    def changing(x: Tensor) -> tuple[Tensor, Tensor]:
        total = (x * factor[0]).sum()
        return total, total

    step = StepGradient(changing)
    for n in range(6):
        factor[0] = float(n + 1)
        _, _, gradient = step(torch.ones(3))
        torch.testing.assert_close(gradient, torch.full((3,), n + 1.0))
    assert "cannot be captured" in caplog.text


def test_a_function_that_no_graph_can_hold_goes_on_by_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def capture(action: Callable[[], Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(step_gradient, "capture", capture)
    monkeypatch.setattr(step_gradient, "_replays", lambda device: True)
    step = StepGradient(weighed)
    for _ in range(5):
        _, _, gradient = step(torch.full((2,), 2.0), torch.ones(2))
        torch.testing.assert_close(gradient, torch.full((2,), 12.0))
    assert caplog.text.count("cannot be captured") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_replays_what_the_cpu_computes() -> None:
    step = StepGradient(weighed)
    for n in range(6):
        x, weight = torch.arange(4.0) + n, torch.tensor([1.0, -2.0, 0.5, n])
        total, _, gradient = step(x.cuda(), weight)
        torch.testing.assert_close(gradient.cpu(), 3 * weight * x**2)
        torch.testing.assert_close(total.cpu(), (weight * x**3).sum())
