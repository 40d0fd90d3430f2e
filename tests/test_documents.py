"""What the README and the how-tos say is true: every block of code in them runs here."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import skimage
from typer.testing import CliRunner

from convlens import explain
from convlens.cli.main import COMMANDS, build
from convlens.protocol.negotiation import Media
from convlens.protocol.params import Params
from convlens.serving.openapi import STATUSES, json_schema

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHELSEA = Path(skimage.__file__).parent / "data" / "chelsea.png"


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def lines(start: str) -> list[str]:
    return [line for block in blocks("console") for line in block.splitlines() if line.startswith(start)]


def test_the_two_commands_come_first() -> None:
    assert blocks("console")[0].split("\n")[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("line", lines("make"))
def test_every_make_target_named_exists(line: str) -> None:
    subprocess.run([*line.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("line", lines(".venv/bin/convlens"))
def test_every_convlens_line_names_a_command_and_its_options(line: str) -> None:
    _, command, *arguments = shlex.split(line)
    if command.startswith("--"):
        assert command in CliRunner().invoke(build([]), ["--help"], env={"COLUMNS": "200"}).output
        return
    assert command in COMMANDS
    nested = command in ("export", "gallery", "jobs")
    asked = [command, *([arguments[0]] if nested else []), "--help"]
    said = CliRunner().invoke(build([command]), asked, env={"COLUMNS": "200"}).output
    for argument in arguments:
        if argument.startswith("-"):
            assert argument in said


@pytest.mark.slow
def test_the_explain_line_does_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "cat.jpg").write_bytes(CHELSEA.read_bytes())
    line = next(line for line in lines(".venv/bin/convlens") if " explain " in line)
    arguments = shlex.split(line)[1:]
    command = [sys.executable, "-c", "from convlens.cli.main import main; main()", *arguments]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=200)
    assert (tmp_path / "explained" / "report.html").is_file()


@pytest.mark.parametrize(
    ("block", "prints"), list(zip(blocks("python"), ("(1, 3, 224, 224)", "fc softmax"), strict=True))
)
def test_every_python_block_of_the_readme_runs(
    block: str, prints: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cat.jpg").write_bytes(CHELSEA.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert prints in capsys.readouterr().out


@pytest.mark.slow
def test_the_python_blocks_of_the_readme_pass_mypy(tmp_path: Path) -> None:
    files = [tmp_path / f"example_{n}.py" for n, _ in enumerate(blocks("python"))]
    for file, block in zip(files, blocks("python"), strict=True):
        file.write_text(block)
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("block", blocks("json"))
def test_every_json_block_parses(block: str) -> None:
    assert json.loads(block)["predictions"][0]["label"] == "tiger cat"


def test_the_table_of_methods_is_the_registry_s() -> None:
    for name in explain.available_methods():
        method = explain.get(name)
        assert f"| `{name}` | {method.shows.rstrip('.')} | {method.does_not_show.rstrip('.')} |" in README


def test_the_figures_are_those_of_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for document in (readme := importlib.import_module("readme")).DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert readme.filled(text) == text


def test_every_link_inside_the_repository_leads_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize(
    ("document", "said"),
    [("onnx.md", "(1, 3, 64, 64) onnxruntime:CPUExecutionProvider"), ("features.md", "2 × 1280")],
)
@pytest.mark.slow
def test_every_python_block_of_the_how_to_runs(
    document: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    for place in ("cat.jpg", "pictures/a.png", "pictures/b.png"):
        (tmp_path / place).write_bytes(CHELSEA.read_bytes())
    monkeypatch.chdir(tmp_path)
    for block in blocks("python", (ROOT / "docs" / document).read_text(encoding="utf-8")):
        exec(compile(block, document, "exec"), {"__name__": "how_to"})
    assert said in capsys.readouterr().out


def test_the_how_to_of_results_reads_what_its_command_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    (tmp_path / "my" / "images").mkdir(parents=True)
    (tmp_path / "my" / "images" / "cat.png").write_bytes(CHELSEA.read_bytes())
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(blocks("console", text)[0])[1:]
    # Saliency alone: a sweep of 196 windows shows nothing more here.
    arguments[arguments.index("saliency,occlusion")] = "saliency"
    assert CliRunner().invoke(build(arguments), arguments).exit_code == 0
    capsys.readouterr()
    exec(compile(blocks("python", text)[0], "results.md", "exec"), {"__name__": "how_to"})
    assert capsys.readouterr().out == "cat.png tiger cat (1, 3, 224, 224)\n"


def test_the_how_to_s_method_works_as_written() -> None:
    (block,) = blocks("python", (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8"))
    script = (
        "import numpy as np, torch, convlens\n"
        "classifier = convlens.load(device='cpu')\n"
        "x_NCHW = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))\n"
        "forward = convlens.ForwardPass(classifier, x_NCHW)\n"
        "ours = convlens.run('gradient_times_input', forward, [3, 5])\n"
        "x = x_NCHW.clone().requires_grad_()\n"
        "(grad,) = torch.autograd.grad(classifier.module(x)[[0, 1], [3, 5]].sum(), x)\n"
        "np.testing.assert_allclose(ours.values_NCHW, (grad * x).detach().numpy(), atol=1e-4)\n"
    )
    # In an interpreter of its own: the method must not stay in this one's registry.
    done = subprocess.run(
        [sys.executable, "-c", block + script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_rest_how_to_lists_every_parameter_form_and_status() -> None:
    text = (ROOT / "docs" / "rest.md").read_text(encoding="utf-8")
    for name in Params.model_fields:
        assert f"\n| `{name}` |" in text
    for form in get_args(Media):
        assert f"\n| `{form}` |" in text
    for code in STATUSES:
        assert f"\n| {code} |" in text
    for block, model in zip(blocks("json", text), ("EvaluationBody", "ErrorBody"), strict=True):
        jsonschema.validate(json.loads(block), {**json_schema(), "$ref": f"#/$defs/{model}"})
