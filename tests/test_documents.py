"""What the README and the how-tos say is true: every block of code in them runs here, or where its server runs.

Every command line is read by the command's own parser, and run where it takes no minutes and no network.
"""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import skimage
from typer.main import get_command
from typer.testing import CliRunner

from convlens import explain
from convlens.cli.main import COMMANDS, build
from convlens.engine.method_calls import method_calls
from convlens.jobs.batch import read_batch
from convlens.jobs.check import check_entries
from convlens.protocol.negotiation import Media
from convlens.protocol.params import Params, parse_params
from convlens.serving.openapi import STATUSES, json_schema
from export.__main__ import _parser as exporter_options

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


# ---- command lines

DOCUMENTS = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
}
# What is not run here, and why; a test of its own runs what is quick on a small network.
PARSED_ONLY = {
    "ascent": "hundreds of steps",
    "archive": "exports graphs",
    "atlas": "draws for minutes",
    "demo": "starts a server",
    "dream": "hundreds of steps",
    "evaluate": "explains for minutes",
    "explain": "sweeps for seconds, and its own test runs it",
    "explore": "serves until it is stopped",
    "export": "exports graphs",
    "fool": "hundreds of steps",
    "invert": "hundreds of steps",
    "jobs": "hundreds of steps",
    "lecture": "draws for minutes",
    "models": "asks timm for its list",
    "patches": "draws for minutes",
    "probe": "asks a server",
    "project": "projects for seconds",
    "query": "asks a server",
    "serve": "serves until it is stopped",
    "texture": "hundreds of steps",
    "token": "asks for a server's token",
}
NEEDS = re.compile(r"torchvision:\w+(?!\S*untrained)\b(?!:)|--graph ")  # weights to download, a graph to export


def console_lines(text: str) -> list[list[str]]:
    """The arguments of every ``convlens`` in the blocks of a document."""
    indented = re.findall(r"^    (convlens .*)$", text, flags=re.MULTILINE)
    lines = [*"".join(blocks("console", text)).splitlines(), *indented]
    found = (re.search(r"(?:^|\.venv/bin/|\$\()convlens ([^)\n]*)", line) for line in lines)
    return [shlex.split(match[1]) for match in found if match]


LINES = [(document, line) for document, text in DOCUMENTS.items() for line in console_lines(text)]
MENTIONS = [
    (document, mention.split())
    for document, text in DOCUMENTS.items()
    for mention in re.findall(r"`(?:\.venv/bin/)?convlens ([a-z][^`]*)`", text)
]


def by_words(parameter: object) -> str:
    return " ".join(parameter) if isinstance(parameter, list) else str(parameter)


def chosen_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command, or the command of a command, that the words name, and the words behind it."""
    command: Any = get_command(build(words[:1])).commands[words[0]]  # type: ignore[attr-defined]
    rest = words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize(("document", "words"), LINES, ids=by_words)
def test_every_command_line_is_one_that_its_command_takes(document: str, words: list[str]) -> None:
    if words[0].startswith("--"):
        assert words[0] in CliRunner().invoke(build([]), ["--help"], env={"COLUMNS": "200"}).output
    elif words[0] == "export":
        exporter_options().parse_args(words[1:])
    else:
        command, rest = chosen_command(words)
        command.make_context("convlens", list(rest))


@pytest.mark.parametrize(("document", "words"), MENTIONS, ids=by_words)
def test_every_command_that_a_sentence_names_has_the_options_it_names(document: str, words: list[str]) -> None:
    assert words[0] in COMMANDS
    if words[0] == "export":
        assert words[1:] in ([], ["KIND"]) or words[1] in exporter_options().format_help()
        return
    command, rest = chosen_command(words)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in rest if word.startswith("-")} <= known
    assert not getattr(command, "commands", {}) or not rest, f"{words} names no command"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the documents' commands run in, with the images that they name."""
    folder = tmp_path_factory.mktemp("workplace")
    for place, count in (("my/images", 2), ("my/pictures", 8), ("more/pictures", 1), ("DIR", 1)):
        (folder / place).mkdir(parents=True)
        for n in range(count):
            (folder / place / f"{Path(place).parent.name or 'd'}-{n}.png").write_bytes(CHELSEA.read_bytes())
    for place in ("my/cat.jpg", "cat.jpg", "dog.jpg"):
        (folder / place).write_bytes(CHELSEA.read_bytes())
    return folder


RUN = [
    (document, line)
    for document, line in LINES
    if line[0] in COMMANDS and line[0] not in PARSED_ONLY and not NEEDS.search(" ".join(line))
]


@pytest.mark.parametrize(("document", "words"), RUN, ids=by_words)
def test_every_quick_command_line_runs(
    document: str, words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    (workplace / "features" / "manifest.json").unlink(missing_ok=True)  # another document's line made it
    shutil.rmtree(workplace / "features", ignore_errors=True)
    result = CliRunner().invoke(build(words), words)
    assert result.exit_code == 0, f"{result.output} {result.exception!r}"


CURLS = [
    line
    for text in DOCUMENTS.values()
    for block in blocks("console", text)
    for line in block.splitlines()
    if line.startswith("curl ")
]


@pytest.mark.parametrize("line", CURLS)
def test_every_curl_line_asks_for_what_there_is(line: str) -> None:
    words = shlex.split(line)
    (address,) = (word for word in words if word.startswith("http://"))
    path = re.fullmatch(r"http://127\.0\.0\.1:8080/(predictions|explanations)/convlens(?:/1\.0/(\w+))?", address)
    assert path is not None
    assert path[2] is None or explain.get(path[2])
    for word in words:
        if word.startswith("params="):
            assert method_calls(parse_params(json.loads(word.removeprefix("params="))), ())
        if word.startswith("Accept: "):
            assert word.removeprefix("Accept: ") in get_args(Media)


# ---- Python


def statements(text: str) -> list[str]:
    """Every import in the blocks of Python and in the sentences of a document."""
    trees = [ast.parse(block) for block in blocks("python", text)]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [*map(ast.unparse, nodes), *re.findall(r"`((?:from|import) convlens[^`]*)`", text)]


@pytest.mark.parametrize("statement", sorted({line for text in DOCUMENTS.values() for line in statements(text)}))
def test_every_documented_import_works(statement: str) -> None:
    exec(statement, {})


NAMES = sorted(
    {name for text in DOCUMENTS.values() for name in re.findall(r"`(convlens(?:\.[A-Za-z_]\w*)+)(?![\w/])", text)}
)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_library_that_a_sentence_names_exists(name: str) -> None:
    pkgutil.resolve_name(name)


SMALL = "torchvision:squeezenet1_1:untrained?size=64&resize=64"
# Document -> what is smaller here than in its blocks, and what these print or write.
SMALLER: dict[str, tuple[dict[str, str], str]] = {
    "atlas.md": (
        {
            "convlens.load()": f'convlens.load("{SMALL}", device="cpu")',
            "blocks.3.1": "features.3",
            "range(8)": "range(1), options=ChannelOptions(k=2, maximisation=MaximisationOptions(pictures=1, steps=2))",
        },
        ".png",
    ),
    "evaluation.md": (
        {
            'convlens.accelerate(convlens.load("packaged:efficientnet_lite0"))': f'convlens.load("{SMALL}")',
            '"my/images", ': '"my/images", metrics=["sparseness"], ',
            ', "occlusion"': "",
        },
        "no method is ranked or recommended",
    ),
    "inside.md": ({}, "blocks.2.0"),
    "synthesis.md": ({}, ""),
}
PRELUDE = """
import convlens
from convlens.atlas import ChannelOptions
from convlens.atlas.maximisation import MaximisationOptions

classifier = convlens.load(device="cpu")
x_CHW = convlens.image.prepare(convlens.image.read("cat.jpg"), classifier.spec).x_CHW
"""


@pytest.mark.parametrize("document", SMALLER)
def test_every_python_block_of_the_how_to_runs_on_less(
    document: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    (workplace / "bricks.jpg").write_bytes((CHELSEA.parent / "brick.png").read_bytes())
    smaller, prints = SMALLER[document]
    names: dict[str, Any] = {"__name__": "how_to"}
    exec(PRELUDE, names)
    for block in blocks("python", DOCUMENTS[document]):
        for old, new in smaller.items():
            block = block.replace(old, new)
        exec(compile(block, document, "exec"), names)
    assert prints in capsys.readouterr().out


def test_the_batch_of_the_how_to_can_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    (workplace / "bricks.jpg").write_bytes((CHELSEA.parent / "brick.png").read_bytes())
    (block,) = blocks("yaml", DOCUMENTS["synthesis.md"])
    (workplace / "batch.yaml").write_text(block)
    results = list(check_entries(read_batch(workplace / "batch.yaml")))
    assert [(result.name, result.error) for result in results] == [
        ("animals-and-coffee", ""),
        ("001-texture", ""),
        ("002-quilt", ""),
    ]


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
    # With the project's own options: what a check of the whole project has kept serves here as well.
    command = [sys.executable, "-m", "mypy", *map(str, files)]
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
