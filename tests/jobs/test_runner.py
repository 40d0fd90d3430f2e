"""Jobs in their folders: killed, resumed, short of disk, damaged, diverging; nothing is lost or half there."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import torch
from killable import Killable
from PIL import Image
from synthesis_runs import run_described, run_described_on_a_full_disk
from torch import Tensor
from torch_flags import fresh_flags

from convlens.errors import JobError, RequestError
from convlens.instrument import use_precision
from convlens.jobs import from_mapping, run_job, runner
from convlens.jobs.batch import Entry, run_batch
from convlens.jobs.runner import Progress
from convlens.models import Classifier
from convlens.synth.base import Job, Outcome, State, SynthesisRun, job
from convlens.synth.efros_leung import EfrosLeung
from convlens.synth.quilting import Quilt
from convlens.types import Bytes8

NETWORK = "torchvision:squeezenet1_1:untrained?size=64&resize=64"
OURS = {"job.yaml", "losses.jsonl", "snapshots", "index.html", "manifest.json", ".lock"}


@job("test-descent")
@dataclass(frozen=True, kw_only=True)
class Descent(Job):
    """Falls towards 0 with noise; ``rate`` above 2 diverges."""

    needs_model = False
    steps: int = 20
    rate: float = 0.5
    pause: float = 0.0

    def begin(self, classifier: Classifier | None) -> SynthesisRun:
        assert classifier is None
        return DescentRun(self)


class DescentRun(SynthesisRun):
    blame = ("rate", "steps")

    def __init__(self, job: Descent) -> None:
        self._job, self.total = job, job.steps
        self._x = torch.full((4, 5, 3), 200.0)
        self._generator = torch.Generator().manual_seed(job.seed)

    def step(self) -> Mapping[str, Tensor | float]:
        time.sleep(self._job.pause)
        value = (self._x**2).mean()
        noise = torch.randn(self._x.shape, generator=self._generator)
        self._x = self._x * (1 - self._job.rate) + noise
        self.done += 1
        return {"objective": value, "half": float(value) / 2}

    def state_dict(self) -> State:
        return {"x": self._x, "generator": self._generator.get_state(), "done": self.done}

    def load_state_dict(self, state: State) -> None:
        self._x, self.done = state["x"], state["done"]
        self._generator.set_state(state["generator"])

    def snapshot(self) -> Bytes8:
        return self._x.abs().clamp(0, 255).to(torch.uint8).numpy()

    def finish(self) -> Outcome:
        return Outcome(
            {"end": self.snapshot()},
            {"twice": self.snapshot()},
            {"mean": float(self._x.mean())},
            {"x": self._x.numpy()},
        )


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "source.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
    return str(path)


def contents(out: Path) -> dict[str, bytes]:
    """All but what tells the time."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", ".lock")
    }


def test_a_finished_folder_holds_everything_and_the_manifest_says_so(tmp_path: Path) -> None:
    seen: list[Progress] = []
    path = run_job(Descent(seed=3), tmp_path / "out", on_progress=seen.append)
    out = tmp_path / "out"
    assert {entry.name for entry in out.iterdir()} == OURS | {"end.png", "twice.png", "x.npy"}
    manifest = json.loads(path.read_text())
    assert manifest["job"] == {
        "kind": "test-descent",
        "model": "packaged:efficientnet_lite0",
        "seed": 3,
        "steps": 20,
        "rate": 0.5,
        "pause": 0.0,
    }
    assert manifest["steps"] == 20
    assert {"torch", "convlens", "device", "seconds"} <= manifest.keys()
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    lines = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert len(lines) == 20
    assert lines[0] == {"objective": 40000.0, "half": 20000.0}
    assert manifest["objective"] == lines[-1]["objective"]
    assert [entry.name for entry in sorted((out / "snapshots").iterdir())] == [
        f"step-{n:06}.jpg" for n in (1, 2, 4, 8, 16)
    ]
    page = (out / "index.html").read_text()
    for shown in ("end.png", "twice.png", "snapshots/step-000016.jpg", "<polyline", "test-descent", "losses.jsonl"):
        assert shown in page
    assert (seen[-1].done, seen[-1].total) == (20, 20)


@job("test-flags")
@dataclass(frozen=True, kw_only=True)
class Flags(Job):
    """Its objective is 1 where torch may round on the CPU in a step, else 0."""

    model: str = NETWORK

    def begin(self, classifier: Classifier | None) -> SynthesisRun:
        return FlagsRun(Descent(steps=3))


class FlagsRun(DescentRun):
    def step(self) -> Mapping[str, Tensor | float]:
        super().step()
        mkldnn: Any = torch.backends.mkldnn
        return {"objective": float(mkldnn.matmul.fp32_precision == "bf16")}


@pytest.mark.parametrize(("asked", "rounds"), [({}, 0.0), ({"precision": None}, 1.0)])
def test_a_job_s_steps_run_in_float32_unless_told_otherwise(
    asked: dict[str, Any], rounds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fresh_flags(monkeypatch):
        torch.set_float32_matmul_precision("medium")
        path = run_job(Flags(), tmp_path / "out", device="cpu", **asked)
        assert torch.get_float32_matmul_precision() == "medium"
    manifest = json.loads(path.read_text())
    assert (manifest["objective"], manifest["precision"]) == (rounds, "bf16" if rounds else "float32")


def test_a_job_on_a_gpu_adds_in_one_order_and_allows_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    # Flags need no GPU, only the name of one.
    classifier = replace(nets.classifier(nets.Linear(), classes=3), device=torch.device("cuda", 0))
    cudnn: Any = torch.backends.cudnn
    with fresh_flags(monkeypatch):
        use_precision("float32")
        before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
        with runner._deterministic(classifier):
            assert (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic) == (False, False, True)
        assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic) == before


def test_a_finished_job_is_left_as_it_is(tmp_path: Path) -> None:
    first = run_job(Descent(), tmp_path / "out").read_bytes()
    seen: list[Progress] = []
    assert run_job(Descent(), tmp_path / "out", on_progress=seen.append).read_bytes() == first
    assert seen == []


def in_a_process(description: dict[str, Any], out: Path) -> Killable:
    return Killable(run_described, description, out)


def run_in_a_process(description: dict[str, Any], out: Path) -> None:
    status, said = in_a_process(description, out).ended(within_s=200)
    assert status == 0, said


def killed_at_a_checkpoint(description: dict[str, Any], out: Path, *, after: int) -> int:
    """Kill −9 as soon as that many steps are in a checkpoint, at whatever it does then; how far it had come."""
    process = in_a_process(description, out)
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and process.is_alive():
            done = [int(path.stem.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*.pt")]
            if max(done, default=0) >= after:
                break
            time.sleep(0.001)
    finally:
        process.kill()
    done = [int(path.stem.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*.pt")]
    return max(done, default=0)


@pytest.fixture(params=["quilt", "ascent", "texture"])
def description(request: pytest.FixtureRequest, source: str) -> dict[str, Any]:
    return {
        "quilt": {"kind": "quilt", "source": source, "height": 160, "width": 160, "block": 12},
        "ascent": {"kind": "ascent", "classes": [1, 2], "steps": 40, "model": NETWORK, "size": 64},
        "texture": {
            "kind": "texture",
            "source": source,
            "layers": ["features.0", "features.3"],
            "source_side": 64,
            "height": 64,
            "width": 64,
            "scales": 2,
            "steps": 12,
            "model": NETWORK,
        },
    }[request.param]


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(description: dict[str, Any], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_in_a_process(description, whole)
    total = json.loads((whole / "manifest.json").read_text())["steps"]
    for share in (0.25, 0.6):
        reached = killed_at_a_checkpoint(description, cut, after=round(share * total))
        assert 0 < reached < total, "it was to be killed on its way"
        assert not (cut / "manifest.json").exists()
    run_in_a_process(description, cut)
    assert contents(cut) == contents(whole)


def test_it_goes_on_from_the_checkpoint_and_not_from_the_start(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_job(Descent(), out, checkpoint_s=0.0, on_progress=_interrupt_at(12))
    seen: list[Progress] = []
    run_job(Descent(), out, on_progress=seen.append)
    assert seen[0].done in (11, 12)
    assert "goes on after" in seen[0].note
    run_job(Descent(), tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def _interrupt_at(step: int) -> Callable[[Progress], None]:
    def watch(now: Progress) -> None:
        if now.done == step:
            raise KeyboardInterrupt

    return watch


def interrupted(out: Path, **options: Any) -> list[Path]:
    """A run that was cut short at its twelfth step; its checkpoints, newest first."""
    with pytest.raises(KeyboardInterrupt):
        run_job(Descent(**options), out, checkpoint_s=0.0, on_progress=_interrupt_at(12))
    return sorted((out / "checkpoints").iterdir(), reverse=True)


def test_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    newest, older = interrupted(tmp_path / "out")
    data = bytearray(newest.read_bytes())
    data[-20] ^= 1
    newest.write_bytes(bytes(data))
    seen: list[Progress] = []
    run_job(Descent(), tmp_path / "out", on_progress=seen.append)
    assert f"{newest.name} is damaged" in seen[0].note
    assert seen[0].done == int(older.stem.removeprefix("step-"))
    run_job(Descent(), tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_checkpoint_is_known_by_its_hash(tmp_path: Path) -> None:
    """A state that can be read but is not the one that was written."""
    newest, older = interrupted(tmp_path / "out")
    newest.write_bytes(newest.read_bytes()[:64] + older.read_bytes()[64:])
    seen: list[Progress] = []
    run_job(Descent(), tmp_path / "out", on_progress=seen.append)
    assert "its hash is not that of its contents" in seen[0].note


def test_where_all_are_damaged_it_says_what_to_do(tmp_path: Path) -> None:
    for path in interrupted(tmp_path / "out"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(JobError, match=r"all checkpoints in .* are damaged; remove .* and start anew"):
        run_job(Descent(), tmp_path / "out")


def test_a_run_that_diverges_stops_says_what_to_lower_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="the objective is no finite number any more; lower rate or steps") as caught:
        run_job(Descent(rate=1e12, steps=50), tmp_path / "out", checkpoint_s=0.0)
    assert caught.value.field == "rate"
    assert not (tmp_path / "out" / "manifest.json").exists()
    kept = sorted((tmp_path / "out" / "checkpoints").iterdir())
    assert kept
    for path in kept:
        state = torch.load(__import__("io").BytesIO(path.read_bytes()[64:]), weights_only=True)
        assert torch.isfinite(state["work"]["x"]).all()


def test_other_jobs_other_things_and_files_are_refused(tmp_path: Path, source: str) -> None:
    out = tmp_path / "out"
    run_job(Descent(), out)
    with pytest.raises(JobError, match="holds a job with other steps; choose another folder"):
        run_job(Descent(steps=21), out)
    with pytest.raises(JobError, match="holds a job with other kind"):
        run_job(Quilt(source=source), out)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(JobError, match="holds other things than a job"):
        run_job(Descent(), foreign)
    assert [path.name for path in foreign.iterdir()] == ["letter.txt"]
    with pytest.raises(JobError, match="is a file; choose a folder"):
        run_job(Descent(), foreign / "letter.txt")


def test_a_changed_image_does_not_go_on(tmp_path: Path, source: str) -> None:
    out = tmp_path / "out"
    chosen = EfrosLeung(source=source, source_side=16, height=20, width=20, window=5)
    with pytest.raises(KeyboardInterrupt):
        run_job(chosen, out, checkpoint_s=0.0, on_progress=_interrupt_after(2))
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(source)
    with pytest.raises(JobError, match="holds a job of other weights or images"):
        run_job(chosen, out)


def _interrupt_after(calls: int) -> Callable[[Progress], None]:
    seen: list[Progress] = []

    def watch(now: Progress) -> None:
        seen.append(now)
        if len(seen) > calls:
            raise KeyboardInterrupt

    return watch


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path, source: str) -> None:
    out = tmp_path / "out"
    description = {"kind": "quilt", "source": source, "height": 600, "width": 600, "block": 8}
    process = in_a_process(description, out)
    try:
        deadline = time.monotonic() + 60
        while not (out / "checkpoints").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(JobError, match="is being worked on by another process"):
            run_job(from_mapping(description), out)
    finally:
        process.kill()


@pytest.mark.slow
def test_a_full_disk_is_told_and_what_was_there_stays(tmp_path: Path, source: str) -> None:
    out = tmp_path / "out"
    description = {"kind": "quilt", "source": source, "height": 200, "width": 200, "block": 16}
    killed_at_a_checkpoint(description, out, after=20)
    before = {path.name: path.read_bytes() for path in (out / "checkpoints").glob("step-*.pt")}
    status, said = Killable(run_described_on_a_full_disk, description, out, 2000).ended(within_s=100)
    assert status == 1
    assert "cannot write to" in said
    assert "goes on from its last checkpoint" in said
    after = {path.name: path.read_bytes() for path in (out / "checkpoints").glob("step-*.pt")}
    assert after == before
    assert not list(out.rglob(".part.*"))
    run_job(from_mapping(description), out)
    run_job(from_mapping(description), tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot write to /proc/convlens"):
        run_job(Descent(), Path("/proc/convlens/out"))
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(JobError, match="cannot write to"):
        run_job(Descent(), blocked / "out")


def test_what_the_work_refuses_leaves_no_manifest(tmp_path: Path, source: str) -> None:
    with pytest.raises(RequestError, match="larger than the source"):
        run_job(Quilt(source=source, block=100), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_batch_goes_on_after_a_failure_and_skips_what_is_done(tmp_path: Path, source: str) -> None:
    entries = [
        Entry("good", Descent(seed=1)),
        Entry("bad", Quilt(source=source, block=100)),
        Entry("wild", Descent(rate=1e12, steps=50)),
        Entry("also", Descent(seed=2)),
    ]
    results = run_batch(entries, tmp_path / "out")
    assert [bool(one.error) for one in results] == [False, True, True, False]
    assert "larger than the source" in results[1].error
    assert "lower rate" in results[2].error
    stamp = (tmp_path / "out" / "good" / "manifest.json").stat().st_mtime_ns
    run_batch(entries, tmp_path / "out")
    assert (tmp_path / "out" / "good" / "manifest.json").stat().st_mtime_ns == stamp


def test_hostile_words_are_only_words_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "<script>alert(1)</script>.png"
    (tmp_path / "<script>alert(1)<").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
    run_job(Quilt(source=str(path), height=20, width=20, block=10), tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
