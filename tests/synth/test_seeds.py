"""A seed means the same noise on every device: whatever draws, draws from a seeded generator on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from convlens.explain import ForwardPass, run
from convlens.models import Classifier
from convlens.synth.adversarial import Fool
from convlens.synth.base import Job, job_class, job_kinds
from convlens.synth.deepdream import Dream
from convlens.synth.efros_leung import EfrosLeung
from convlens.synth.feature_inversion import Invert
from convlens.synth.gradient_ascent import Ascent
from convlens.synth.gram_texture import Texture
from convlens.synth.quilting import Quilt

SIDE = 48
JOBS: dict[str, Callable[[str], Job]] = {
    "ascent": lambda _: Ascent(classes=(1,), steps=2),
    "dream": lambda path: Dream(picture=path, layers=("first",), octaves=1, steps=2),
    "efros": lambda path: EfrosLeung(source=path, width=20, height=20, window=5),
    "fool": lambda path: Fool(picture=path, target=1, steps=2),
    "invert": lambda path: Invert(picture=path, layers=("first",), steps=2),
    "quilt": lambda path: Quilt(source=path, width=60, height=60, block=16),
    "texture": lambda path: Texture(source=path, layers=("first",), width=SIDE, height=SIDE, scales=1, steps=2),
}
DRAW: set[str] = {"ascent", "dream", "invert", "texture"}  # the others draw by numpy, or not at all


class Draws(TorchDispatchMode):
    """Notes every operation that torch itself marks as random, and the generator that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.generators: list[torch.Generator | None] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.generators.append((kwargs or {}).get("generator"))
        return func(*args, **(kwargs or {}))

    def assert_on_cpu(self) -> None:
        # torch refuses a generator of another device than the draw's: so the numbers are the CPU's everywhere.
        assert all(generator is not None and generator.device.type == "cpu" for generator in self.generators)


def mixed() -> Classifier:
    return nets.classifier(nets.seeded(nets.Mixed).float().requires_grad_(False), classes=4, crop=SIDE)


def test_every_kind_of_job_is_looked_at() -> None:
    assert set(JOBS) == {kind for kind in job_kinds() if job_class(kind).__module__.startswith("convlens.")}


@pytest.mark.parametrize("kind", JOBS)
def test_jobs_draw_on_the_cpu(kind: str, saved: Callable[..., str], tmp_path: Path) -> None:
    path = saved(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)))
    job, classifier = JOBS[kind](path), mixed()
    with Draws() as draws:
        work = job.begin(classifier if job.needs_model else None)
        for _ in range(2):
            work.step()
    draws.assert_on_cpu()
    assert bool(draws.generators) == (kind in DRAW)


def test_smoothgrad_draws_on_the_cpu() -> None:
    forward = ForwardPass(mixed(), nets.pictures(2, 3, 8, 8, dtype=torch.float32))
    with Draws() as draws:
        run("smoothgrad", forward, [0, 1], {"samples": 3})
    draws.assert_on_cpu()
    assert len(draws.generators) >= 2
