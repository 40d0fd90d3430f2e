"""Running synthesis works in tests: to the end, and in pieces that were put away in between."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from convlens.synth.base import Outcome, SynthesisRun


def run_to_end(work: SynthesisRun) -> Outcome:
    while work.done < work.total:
        work.step()
    return work.finish()


def reload_from_file(work: SynthesisRun, fresh: SynthesisRun) -> SynthesisRun:
    """``fresh`` where ``work`` stood, by way of a file's bytes."""
    memory = io.BytesIO()
    torch.save({"work": work.state_dict(), "total": work.total}, memory)
    memory.seek(0)
    saved: Any = torch.load(memory, weights_only=True)
    fresh.load_state_dict(saved["work"])
    fresh.total = saved["total"]
    return fresh


def assert_resumes(begin: Callable[[], SynthesisRun], *, every: int = 1) -> None:
    """Put away after every so many steps, it ends with the same values and the same pictures, bit by bit."""
    whole, values = begin(), []
    while whole.done < whole.total:
        values.append(plain(whole.step()))
    work, again = begin(), []
    while work.done < work.total:
        for _ in range(every):
            if work.done < work.total:
                again.append(plain(work.step()))
        work = reload_from_file(work, begin())
    assert again == values
    wanted, found = whole.finish(), work.finish()
    assert found.images.keys() == wanted.images.keys()
    for name, picture in wanted.images.items():
        np.testing.assert_array_equal(found.images[name], picture)
    assert found.facts == wanted.facts


def plain(values: Any) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def stripes(side: int, period: int) -> np.ndarray:
    wave = 128 + 90 * np.sign(np.sin(2 * np.pi * (np.arange(side) + 0.5) / period))
    return np.broadcast_to(wave[None, :, None], (side, side, 3))


def period_of(picture: np.ndarray) -> float:
    """The strongest frequency across, as a period."""
    rows = picture.astype(float).mean(2)
    power = np.abs(np.fft.rfft(rows - rows.mean(), axis=1)).mean(0)
    return rows.shape[1] / int(power[1:].argmax() + 1)
