"""Ctrl-C and SIGTERM on the command line: what is finished is kept and said, and the same command goes on."""

from __future__ import annotations

import csv
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from engine_door import engine_door
from killable import Killable, run_command_line
from PIL import Image

from convlens import load
from convlens.engine.engine import Engine

NETWORK = """
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

HERE = Path(__file__).parent


def is_white(x):
    with torch.no_grad(), _disable_current_modes():  # receptive fields follow what is computed here otherwise
        return bool((x.amin((1, 2, 3)) > 2).any())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        # All white, which noise never is: the image that this network takes its time for.
        if (HERE / "slow").exists() and is_white(x):
            (HERE / "reached").touch()
            while (HERE / "slow").exists():
                time.sleep(0.01)
        if (HERE / "paced").exists():
            time.sleep(0.05)
        return self.head(self.features(x).mean((2, 3)))
"""
INTERRUPTED = 128 + signal.SIGINT
_PATIENCE_S = 250


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    return f"file:{tmp_path}/net.py:Net?size=32&labels={tmp_path}/names.txt"


def write_images(folder: Path, count: int, *, white: int) -> Path:
    """That many images of noise; number ``white`` is white."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        noise = np.random.default_rng(n).integers(0, 200, (32, 32, 3), np.uint8)
        Image.fromarray(np.full_like(noise, 255) if n == white else noise).save(folder / f"{n:02}.png")
    return folder


def start(folder: Path, *arguments: object) -> Killable:
    return Killable(run_command_line, folder, [str(argument) for argument in arguments])


def finish(process: Killable) -> tuple[int | None, str]:
    code, said = process.ended(within_s=_PATIENCE_S)
    assert "Traceback" not in said, said
    return code, " ".join(said.split())


def wait_until(condition: Callable[[], bool], process: Killable) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert process.is_alive(), process.ended(within_s=1)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def interrupted(
    folder: Path, *arguments: object, number: int = signal.SIGINT, at_once: bool = True
) -> tuple[int | None, str]:
    """How a command ends, and what it says, that is interrupted at the white image.

    Not ``at_once``: it waits until that image is done.
    """
    (folder / "slow").touch()
    process = start(folder, *arguments, "--device", "cpu")
    wait_until((folder / "reached").exists, process)
    process.send_signal(number)
    if not at_once:
        time.sleep(0.1)  # until the signal has come
        (folder / "slow").unlink()
    ended = finish(process)
    (folder / "slow").unlink(missing_ok=True)
    return ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_explained_images_are_kept_and_listed(model: str, tmp_path: Path, number: int) -> None:
    images = write_images(tmp_path / "images", 7, white=5)  # in the second batch of four
    arguments = ("explain", images, "--model", model, "--methods", "saliency", "--no-accelerate", "-o", "out")
    code, said = interrupted(tmp_path, *arguments, number=number)
    assert code == 128 + number
    assert "interrupted: 4 of 7 images are explained and kept" in said
    assert "report: out/report.html" in said
    assert {path.parent.name for path in (tmp_path / "out").glob("*/saliency.npz")} == {"00", "01", "02", "03"}
    assert all(f"{n:02}.png" in said for n in range(4))
    pictures = json.loads((tmp_path / "out" / "manifest.json").read_text())["pictures"]
    assert [picture["name"] for picture in pictures] == [f"{n:02}.png" for n in range(4)]


def test_an_explanation_that_is_interrupted_at_its_first_image_writes_nothing(model: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2, white=0)
    code, said = interrupted(tmp_path, "explain", images, "--model", model, "--methods", "saliency", "-o", "out")
    assert (code, "interrupted: 0 of 2 images are explained" in said) == (INTERRUPTED, True)
    assert not (tmp_path / "out").exists()


def test_answered_images_are_kept_and_listed(model: str, tmp_path: Path) -> None:
    images = sorted(write_images(tmp_path / "images", 6, white=-1).iterdir())
    asked, go_on = threading.Event(), threading.Event()

    def hold_the_fourth(number: int) -> None:
        if number == 4:
            asked.set()
            assert go_on.wait(timeout=_PATIENCE_S)

    with engine_door(Engine(load(model, device="cpu")), on_request=hold_the_fourth) as url:
        options = ("--url", url, "--at-once", 1, "--methods", "saliency", "-o", "out")
        process = start(tmp_path, "query", *images, *options)
        wait_until(asked.is_set, process)
        time.sleep(0.5)  # until the third answer has been read
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        go_on.set()
        code, said = finish(process)
    assert code == INTERRUPTED
    assert "interrupted: 3 of 6 images are answered" in said
    assert {path.parent.name for path in (tmp_path / "out").glob("*/saliency.npz")} == {"00", "01", "02"}


@pytest.mark.parametrize("command", [("features",), ("gallery", "build")], ids=" ".join)
def test_embedded_images_are_kept_and_the_same_command_goes_on(
    model: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    images = write_images(tmp_path / "images", 40, white=17)  # in the second batch of 16
    arguments = (*command, images, "--model", model, "--no-accelerate", "-o", "out")
    code, said = interrupted(tmp_path, *arguments, at_once=False)
    assert code == INTERRUPTED
    assert "interrupted: 32 of 40 images are " in said
    assert "run the same command again to go on" in said
    code, said = finish(start(tmp_path, *arguments, "--device", "cpu"))
    assert code == 0, said
    assert "40 " in said


def test_patches_of_the_images_so_far_are_drawn(model: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 40, white=17)
    options = ("--layer", "features.0", "--channels", "0-1", "-k", 3, "--backprop", "none")
    code, said = interrupted(tmp_path, "patches", images, "--model", model, *options, "-o", "out", at_once=False)
    assert code == INTERRUPTED
    assert "interrupted: 32 of 40 images have run" in said
    assert "6 patches of 2 channels from 32 images" in said
    with (tmp_path / "out" / "patches.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert all(int(row["picture"][:2]) < 32 for row in rows)


def test_evaluated_images_are_kept_and_the_same_command_goes_on(model: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 4, white=2)
    options = ("--methods", "saliency", "--metrics", "sparseness", "--baselines", "none", "--workers", 1)
    arguments = ("evaluate", images, "--model", model, *options, "--no-accelerate", "-o", "out")
    code, said = interrupted(tmp_path, *arguments)
    assert code == INTERRUPTED
    assert "interrupted: 2 of 4 images are evaluated and kept in out; run the same command again to go on" in said
    assert len((tmp_path / "out" / ".partial" / "records.jsonl").read_text().splitlines()) == 2
    code, said = finish(start(tmp_path, *arguments, "--device", "cpu"))
    assert code == 0, said
    assert len((tmp_path / "out" / "records.jsonl").read_text().splitlines()) == 4


def test_an_atlas_says_how_far_it_has_come(model: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 40, white=17)
    options = ("--layers", "features.0", "--channels", "0", "--steps", 1, "--side", 32, "-k", 2)
    code, said = interrupted(tmp_path, "atlas", model, images, *options, "-o", "out")
    assert code == INTERRUPTED
    assert "interrupted: 16 of 40 images have run" in said
    assert "run the same command again to go on" in said


def test_a_command_of_a_lecture_that_is_interrupted_ends_the_lecture(model: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3, white=0)
    options = ("--chapters", "activations", "--quick", "--images", images)
    (tmp_path / "slow").touch()
    process = start(tmp_path, "lecture", "--model", model, *options, "-o", "out")
    wait_until((tmp_path / "reached").exists, process)
    process.send_signal(signal.SIGINT)
    code, said = finish(process)
    assert code == INTERRUPTED
    assert "interrupted: 0 figures are made and kept" in said


# ---- jobs

ASCENT = ("ascent", "bee", "--preset", "lucid", "--set", "size=32", "--device", "cpu")


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_an_ascent_leaves_a_checkpoint_and_goes_on_as_if_nothing_had_been(model: str, tmp_path: Path) -> None:
    arguments = (*ASCENT, "--model", model, "--steps", 20)
    (tmp_path / "paced").touch()
    process = start(tmp_path, *arguments, "-o", "out")
    wait_until(lambda: lines(tmp_path / "out" / "losses.jsonl") >= 3, process)
    process.send_signal(signal.SIGINT)
    code, said = finish(process)
    (tmp_path / "paced").unlink()
    done = lines(tmp_path / "out" / "losses.jsonl")
    assert code == INTERRUPTED
    assert 3 <= done < 20
    assert f"interrupted: {done} of 20 steps are done and kept in out/checkpoints" in said
    assert f"the last image of it is {max((tmp_path / 'out' / 'snapshots').iterdir()).relative_to(tmp_path)}" in said
    assert said.endswith("run the same command again to go on")
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == [f"step-{done:06}.pt"]
    code, said = finish(start(tmp_path, *arguments, "-o", "out"))
    assert code == 0, said
    assert f"goes on after {done} of 20" in said
    assert finish(start(tmp_path, *arguments, "-o", "whole"))[0] == 0
    for name in ("00-bee.png", "losses.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_batch_says_which_jobs_are_done_and_shows_the_one_that_was_interrupted(model: str, tmp_path: Path) -> None:
    (tmp_path / "paced").touch()
    job = {"kind": "ascent", "classes": ["bee"], "size": 32, "model": model}
    jobs = [{**job, "name": "short", "steps": 1}, {**job, "name": "long", "steps": 2000}]
    (tmp_path / "batch.yaml").write_text(yaml.safe_dump({"jobs": jobs}))
    process = start(tmp_path, "jobs", "run", "batch.yaml", "-o", "out", "--device", "cpu")
    wait_until(lambda: lines(tmp_path / "out" / "long" / "losses.jsonl") >= 2, process)
    process.send_signal(signal.SIGINT)
    code, said = finish(process)
    assert code == INTERRUPTED
    assert "interrupted: 1 of 2 jobs are done; out keeps them, and the checkpoints of others" in said
    done = lines(tmp_path / "out" / "long" / "losses.jsonl")
    assert f"Interrupted after {done} steps" in (tmp_path / "out" / "index.html").read_text()
    assert (tmp_path / "out" / "long" / "checkpoints" / f"step-{done:06}.pt").is_file()
