"""``convlens atlas`` as a user meets it."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_atlases import contents
from small_evaluations import write_images
from typer.testing import CliRunner, Result

from convlens.atlas import ChannelOptions
from convlens.atlas.maximisation import MaximisationOptions
from convlens.cli.atlas import atlas
from convlens.cli.main import build
from convlens.errors import RequestError

QUICK = ("--steps", 3, "--side", 32, "-k", 2, "--device", "cpu")


def convlens(*arguments: object) -> Result:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build(given), given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef factory():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))\n"
    )
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    return f"file:{tmp_path / 'net.py'}:factory?size=32&labels={tmp_path / 'names.txt'}"


def test_a_model_and_a_folder_become_a_site(model: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images" / "bee", 3).parent
    (images / "bee" / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "site"
    options = ("--layers", "1,3", "--channels", "0-2", "--labels", "folder", *QUICK)
    result = convlens("atlas", model, images, "-o", out, *options)
    assert "6 channels of 2 layers from 3 images" in result.output
    assert str(out / "index.html") in result.output
    facts = json.loads((out / "atlas.json").read_text())
    assert [name for name, _ in facts["unreadable"]] == ["bee/broken.png"]
    assert [layer["channel_page"] for layer in facts["layers"]] == [
        "layers/1/{channel}.html",
        "layers/3/{channel}.html",
    ]
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert {record["labelled"][0]["label"] for record in records} == {"bee"}


def test_the_defaults_are_the_library_s() -> None:
    given = {name: parameter.default for name, parameter in inspect.signature(atlas).parameters.items()}
    assert {name: given[name] for name in ("k", "backprop", "seed")} == {
        name: getattr(ChannelOptions(), name) for name in ("k", "backprop", "seed")
    }
    assert {name: given[name] for name in ("pictures", "steps", "side")} == {
        name: getattr(MaximisationOptions(), name) for name in ("pictures", "steps", "side")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layers", "33"), "no layer '33'"),
        (("--layers", "1", "--channels", "6-9"), r"none of the channels 6, 7, 8, 9; there are 0\.\.5"),
        (("--layers", "1", "--side", "8"), "side should be from 16 to 1024, not 8"),
        (("--layers", "1", "--labels", "folder"), "have no label in folder"),
    ],
)
def test_what_will_not_do_is_said_and_nothing_is_written(
    model: str, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    images = write_images(tmp_path / "images", 3)
    with pytest.raises(RequestError, match=message):
        convlens("atlas", model, images, "-o", tmp_path / "site", "--steps", 1, "-k", 1, "--device", "cpu", *options)
    assert not (tmp_path / "site").exists()


@pytest.mark.slow
def test_a_killed_process_is_resumed(model: str, tmp_path: Path) -> None:
    """SIGKILL while channels are drawn; the command is then repeated, and compared with one that was left in peace."""
    images = write_images(tmp_path / "images", 4)
    command = [sys.executable, "-c", "from convlens.cli.main import main; main()", "atlas", model, str(images)]
    command += ["--layers", "1,3", *map(str, QUICK), "--steps", "40"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, "-o", str(tmp_path / "cut")], env=environment, **silent)
    journal, deadline = tmp_path / "cut" / ".partial" / "records.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 2:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "atlas.json").exists()
    for out in ("cut", "whole"):
        subprocess.run([*command, "-o", str(tmp_path / out)], env=environment, check=True, **silent)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
