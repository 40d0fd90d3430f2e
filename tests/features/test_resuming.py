"""Killed at any moment and begun again: the very bytes of an uninterrupted run, nothing lost, nothing doubled."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from extractions import ROOT, SUPPORT, contents, extraction, in_a_process, interrupted, mixed, photographs

from convlens.errors import RequestError
from convlens.features.embedder import torch_embedder

FORMATS = ("npy", "safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("resuming") / "pictures", 30, broken=(0, 10, 11, 12, 13, 29))


def journal_of(out: Path) -> Path:
    return out / ".partial" / "journal.jsonl"


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_that_broke_off_goes_on_and_ends_the_same(tmp_path: Path, images: Path, format: str) -> None:
    extraction(images, tmp_path / "whole", format=format, shard_rows=7)
    interrupted(images, tmp_path / "broken", after=14, format=format, shard_rows=7)
    assert not (tmp_path / "broken" / "manifest.json").exists()
    done = extraction(images, tmp_path / "broken", format=format, shard_rows=7)
    assert done.resumed >= 10
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert len(done.unreadable) == 6


def test_only_what_was_not_done_is_embedded_again(tmp_path: Path, images: Path) -> None:
    interrupted(images, tmp_path / "out", after=14)
    net = mixed()
    counts: list[int] = []
    net.module.first.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    done = extraction(images, tmp_path / "out", torch_embedder(net, batch=4))
    assert done.rows == 24
    assert counts == [4, 4, 4]  # as many had been committed


@pytest.mark.parametrize("format", FORMATS)
def test_a_journal_cut_anywhere_costs_a_batch_and_no_bit(tmp_path: Path, images: Path, format: str) -> None:
    extraction(images, tmp_path / "whole", format=format, shard_rows=7)
    expected = contents(tmp_path / "whole")
    interrupted(images, tmp_path / "begun", after=20, format=format, shard_rows=7)
    begun, size = contents(tmp_path / "begun"), journal_of(tmp_path / "begun").stat().st_size
    for kept in (0, 1, *range(size // 7, size, size // 7), size - 1):
        out = tmp_path / f"cut {kept}"
        for name, data in begun.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(data[:kept] if name.endswith("journal.jsonl") else data)
        extraction(images, out, format=format, shard_rows=7)
        assert contents(out) == expected, f"{kept} of {size} bytes"


# A child that dies without a word at the n-th step it takes in the file system, for every n until it survives; then
# the same command again, to its end. Torch must not have used threads before a fork.
EVERY_STEP = """
import os, sys
from pathlib import Path
from extractions import contents, extraction, torch
torch.set_num_threads(1)
pictures, outs, format, over = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "over"
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.scandir", "os.listdir"}

def run(out):
    return extraction(pictures, out, format=format, shard_rows=3, workers=1, overwrite=over)

def visible(out):
    return {name: data for name, data in contents(out).items() if not name.startswith(".partial/")}

def die_at(step):
    left = [step]
    def count():
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
    def hook(event, _):
        if event in STEPS:
            count()
    def fsync(descriptor):
        count()
        flush(descriptor)
    flush, os.fsync = os.fsync, fsync
    sys.addaudithook(hook)

run(outs / "new")
extraction(pictures, outs / "old", format="safetensors", shard_rows=1, batch=3)
old, new, status, step, resumed = visible(outs / "old"), visible(outs / "new"), 1, 0, set()
while status:
    step += 1
    out = outs / str(step)
    if over:
        extraction(pictures, out, format="safetensors", shard_rows=1, batch=3)
    child = os.fork()
    if child == 0:
        die_at(step)
        run(out)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if "manifest.json" in visible(out):
        assert visible(out) in (old, new), step
    if visible(out) != new:
        resumed.add(run(out).resumed)
    assert visible(out) == new, step
print(step, sorted(resumed))
"""


@pytest.mark.parametrize(("format", "over"), [("npy", "over"), ("safetensors", "nothing")])
@pytest.mark.slow
def test_killed_at_any_step_and_begun_again_it_writes_the_same_bytes(tmp_path: Path, format: str, over: str) -> None:
    images = photographs(tmp_path / "pictures", 7, broken=(3,))
    done = subprocess.run(
        [sys.executable, "-c", EVERY_STEP, str(images), str(tmp_path / "outs"), format, over],
        cwd=SUPPORT,
        env={"PYTHONPATH": f"{SUPPORT}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    steps, resumed = done.stdout.split(" ", 1)
    assert int(steps) > 40  # so many steps there are; the last child lived
    assert resumed.strip() == "[0, 5, 7]"  # from the beginning, after the first batch, and when only the end was left


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.slow
def test_killed_again_and_again_at_random_moments_it_ends_the_same(tmp_path: Path, images: Path, format: str) -> None:
    chance = random.Random(1)
    whole = in_a_process(images, tmp_path / "whole", format, 0)
    assert whole.ended(within_s=120)[1].endswith("resumed 0\n")
    for _ in range(2):
        run = in_a_process(images, tmp_path / "killed", format, 0.1)
        run.output.readline()  # the work begins
        time.sleep(chance.uniform(0.05, 0.25))
        run.kill()
        assert run.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "manifest.json").exists()
    last = in_a_process(images, tmp_path / "killed", format, 0)
    assert int(last.ended(within_s=120)[1].split()[-1]) > 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    positions = pq.read_table(tmp_path / "killed" / "manifest.parquet")["position"].to_pylist()
    assert sorted(positions) == sorted(set(positions))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"batch": 5}, "batch was 4 and is 5"),
        ({"format": "safetensors"}, "format was npy and is safetensors"),
        ({"embedder": torch_embedder(mixed(1), batch=4)}, f"weights_sha256 was {0:064d} and is {1:064d}"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, images: Path, changed: dict, says: str) -> None:
    interrupted(images, tmp_path / "out", after=5)
    before = contents(tmp_path / "out")
    with pytest.raises(RequestError, match=f"begun with other settings: .*{says}"):
        extraction(images, tmp_path / "out", **changed)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("change", ["one more", "another size"])
def test_other_images_are_refused_too(tmp_path: Path, change: str) -> None:
    folder = photographs(tmp_path / "pictures", 9)
    interrupted(folder, tmp_path / "out", after=5)
    target = folder / "c" / "zzz.jpg" if change == "one more" else folder / "a" / "000.jpg"
    target.write_bytes((folder / "b" / "004.jpg").read_bytes() + b"\0")
    with pytest.raises(RequestError, match="list_sha256 was"):
        extraction(folder, tmp_path / "out")


def test_a_finished_folder_says_so_and_stays(tmp_path: Path, images: Path) -> None:
    extraction(images, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(RequestError, match="is finished already; choose a new folder, or --overwrite"):
        extraction(images, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_overwriting_replaces_the_old_result_only_when_the_new_one_is_complete(tmp_path: Path, images: Path) -> None:
    extraction(images, tmp_path / "out", format="safetensors", shard_rows=7)
    before = contents(tmp_path / "out")
    interrupted(images, tmp_path / "out", after=14, overwrite=True)
    assert {name: contents(tmp_path / "out")[name] for name in before} == before
    assert extraction(images, tmp_path / "out", overwrite=True).resumed >= 10  # the same command goes on
    extraction(images, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_overwriting_drops_what_other_settings_began(tmp_path: Path, images: Path) -> None:
    interrupted(images, tmp_path / "out", after=14, batch=3)
    assert extraction(images, tmp_path / "out", overwrite=True).resumed == 0
    extraction(images, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
