"""Running synthesis works in tests: to the end, in pieces that were put away in between, and to be killed."""

from __future__ import annotations

import io
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convlens.jobs import from_mapping, run_job
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


# ---- in a process of its own


def run_described(description: dict[str, Any], out: Path) -> None:
    """A job with a checkpoint after each step, in one thread."""
    torch.set_num_threads(1)
    run_job(from_mapping(description), out, device="cpu", checkpoint_s=0.0)


def run_described_on_a_full_disk(description: dict[str, Any], out: Path, limit: int) -> None:
    """No file may grow beyond ``limit`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    run_described(description, out)
