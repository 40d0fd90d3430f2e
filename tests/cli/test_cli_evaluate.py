"""``convlens evaluate`` on the command line: the folder it writes, the table it prints, what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from convlens.cli.main import build
from convlens.evaluation.evaluate import COSTLY_PICTURES, DEFAULT_METRICS
from convlens.evaluation.metrics import GROUPS
from convlens.evaluation.perturbation import CurveProtocol

NET = """import torch
from torch import nn


def factory():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 3)
    )
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "names.txt").write_text("apple\nbear\ncat\n")
    return f"file:{tmp_path / 'net.py'}:factory?size=32&labels={tmp_path / 'names.txt'}"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for label in ("apple", "cat"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for n in range(2):
            pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{n}.png")
    return tmp_path / "images"


def evaluate(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(build(["evaluate"]), ["evaluate", *map(str, arguments), "--device", "cpu"])
    return result.exit_code, f"{result.output} {result.exception or ''}"


def test_the_folder_holds_page_tables_records_and_verdict(model: str, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said = evaluate(
        images, "--model", model, "-o", out, "--methods", "saliency,grad_cam,occlusion", "--set", "occlusion.window=16",
        "--metrics", "insertion,deletion", "--steps", 4, "--labels", "folder",
    )  # fmt: skip
    assert code == 0, said
    assert "page: " in said
    result = json.loads((out / "evaluation.json").read_text())
    assert result["settings"]["methods"]["occlusion"] == {
        "window": 16, "stride": 16, "fill": 0.0, "score": "logit", "strategy": "full", "precision": "float32",
    }  # fmt: skip
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [(record["id"], record["true_label"]) for record in records] == [
        ("apple/0.png", "apple"), ("apple/1.png", "apple"), ("cat/0.png", "cat"), ("cat/1.png", "cat"),
    ]  # fmt: skip
    with (out / "methods.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    mean = np.mean([record["methods"]["saliency"]["values"]["deletion"] for record in records])
    assert float(rows["saliency"]["deletion"]) == pytest.approx(mean, abs=1e-9)
    with (out / "pictures.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4 * (3 + 4)  # pictures × (methods and baselines)
    page = (out / "index.html").read_text()
    maps = sorted(path.name for path in (out / "maps").iterdir())
    assert len(maps) == 3 * 4
    assert all(f"maps/{name}" in page for name in maps)


def test_its_help_and_defaults_are_the_library_s() -> None:
    """They are written out, since completion imports nothing of it."""
    options = {option.name: option for option in get_command(build(["evaluate"])).commands["evaluate"].params}  # type: ignore[attr-defined]
    assert all(name in options["metrics"].help for name in GROUPS)
    assert ", ".join(DEFAULT_METRICS) in options["metrics"].help
    costly = ", ".join(name for name, group in GROUPS.items() if group.costly)
    assert options["costly_pictures"].help.endswith(f": {costly}.")
    assert options["costly_pictures"].default == COSTLY_PICTURES
    protocol = CurveProtocol()
    for name in ("steps", "insertion_substrate", "deletion_substrate"):
        assert options[name].default == getattr(protocol, name)


def test_a_finished_folder_is_kept(model: str, images: Path, tmp_path: Path) -> None:
    arguments = (images, "--model", model, "-o", tmp_path / "out", "--methods", "saliency", "--metrics", "sparseness")
    assert evaluate(*arguments)[0] == 0
    code, said = evaluate(*arguments)
    assert code == 1
    assert "is finished already" in said.replace("\n", " ")
    assert evaluate(*arguments, "--overwrite")[0] == 0


def test_baselines_can_be_left_out(model: str, images: Path, tmp_path: Path) -> None:
    code, said = evaluate(
        images, "--model", model, "-o", tmp_path / "out", "--methods", "saliency", "--metrics", "sparseness",
        "--baselines", "none",
    )  # fmt: skip
    assert code == 0, said
    assert list(json.loads((tmp_path / "out" / "evaluation.json").read_text())["summary"]["methods"]) == ["saliency"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "insert"], "no metric 'insert'; did you mean insertion"),
        (["--methods", "salience"], "no method 'salience'; did you mean saliency"),
        (["--methods", "saliency", "--set", "saliency.windows=3"], "windows"),
        (["--metrics", "localisation"], "give boxes too"),
        (["--target", "true"], "only labels can tell"),
        (["--labels", "folder", "--methods", "neighbours"], "neighbours gives images and no map"),
        (["--steps", "1"], "steps=1; use 2..1000"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    model: str, images: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, said = evaluate(images, "--model", model, "-o", tmp_path / "out", *arguments)
    assert code != 0
    assert message in " ".join(said.split())
    assert not (tmp_path / "out").exists()
