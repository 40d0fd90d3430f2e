"""Jobs that version 0.1.0 finished, or left with a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import written
import yaml
from PIL import Image

from convlens.jobs import from_mapping, run_job
from convlens.jobs.runner import Progress
from convlens.synth.base import Job

# Blocks are chosen among whole numbers; ascent's sums may end in another last digit on another machine.
CASES = [("quilt", 3, 9, 0), ("ascent", 7, 12, 1)]
DRAWN_ANEW = {"source-and-texture.png"}  # a figure of the results, which has captions since


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = written.copied(tmp_path)
    monkeypatch.chdir(copy)
    return copy


def described(out: Path) -> Job:
    values = yaml.safe_load((out / "job.yaml").read_text())
    return from_mapping({name: value for name, value in values.items() if name != "identity"})


def losses(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", [case[0] for case in CASES])
def test_a_finished_job_is_left_as_it_is(folder: Path, kind: str) -> None:
    out = folder / f"job-{kind}"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    calls: list[Progress] = []
    assert run_job(described(out), out, device="cpu", on_progress=calls.append) == out / "manifest.json"
    assert calls == []
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("kind", "reached", "total", "levels"), CASES)
def test_a_job_goes_on_from_its_checkpoint_to_the_same_images(
    folder: Path, kind: str, reached: int, total: int, levels: int
) -> None:
    whole, out = folder / f"job-{kind}", folder / f"job-{kind}-interrupted"
    calls: list[Progress] = []
    run_job(described(out), out, device="cpu", on_progress=calls.append)
    assert (calls[0].done, calls[0].total) == (reached, total)
    then, now = (json.loads((each / "manifest.json").read_text()) for each in (whole, out))
    assert now.keys() == then.keys() | {"precision"}  # added since
    assert now["files"].keys() == then["files"].keys()
    assert [now[name] for name in ("job", "steps", "weights_sha256")] == [
        then[name] for name in ("job", "steps", "weights_sha256")
    ]
    for name in then["files"].keys() - DRAWN_ANEW:
        expected, found = (np.asarray(Image.open(each / name)).astype(int) for each in (whole, out))
        np.testing.assert_allclose(found, expected, atol=levels)
    assert (
        (out / "losses.jsonl")
        .read_bytes()
        .startswith(b"".join((whole / "losses.jsonl").read_bytes().splitlines(True)[:reached]))
    )
    for expected_step, step in zip(losses(whole), losses(out), strict=True):
        assert step.keys() == expected_step.keys()
        np.testing.assert_allclose(list(step.values()), list(expected_step.values()), rtol=1e-4, atol=1e-6)
    assert not (out / "checkpoints").exists()
