"""Jobs and extraction over a Ray cluster of two workers on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from convlens.errors import JobError
from convlens.jobs import Entry, run_batch
from convlens.synth.quilt import Quilt

pytest.importorskip("ray", reason="the optional package ray")

from convlens.jobs.ray_ import run_batch_on


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    path = tmp_path / "source.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
    jobs = [Quilt(source=str(path), height=60, width=60, block=16, seed=seed) for seed in range(3)]
    bad = Quilt(source=str(path), block=100)
    return [*(Entry(f"job-{n}", one) for n, one in enumerate(jobs)), Entry("bad", bad)]


def test_a_batch_over_two_workers_ends_as_one_after_another(entries: list[Entry], tmp_path: Path) -> None:
    ended = run_batch_on("local", entries, tmp_path / "spread", device="cpu", workers=2)
    run_batch(entries, tmp_path / "alone", device="cpu")
    assert [one.name for one in ended] == [entry.name for entry in entries]
    assert [bool(one.error) for one in ended] == [False, False, False, True]
    assert "larger than the source" in ended[-1].error
    for entry in entries[:-1]:
        for name in ("texture.png", "losses.jsonl"):
            there, here = (tmp_path / where / entry.name / name for where in ("spread", "alone"))
            assert there.read_bytes() == here.read_bytes()
    children = psutil.Process(os.getpid()).children(recursive=True)
    assert not [child for child in children if "ray" in " ".join(child.cmdline())]


def test_a_cluster_that_is_not_there_is_told(entries: list[Entry], tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        run_batch_on("127.0.0.1:1", entries, tmp_path / "out")
