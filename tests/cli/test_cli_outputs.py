"""What ``-o`` names is checked before a model is loaded, by every command that writes; nothing ends in a traceback."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
import skimage
import yaml
from killable import Killable, run_command_line
from typer.main import get_command

from convlens.cli.main import COMMANDS, build, main

CHELSEA = str(Path(skimage.__file__).parent / "data" / "chelsea.png")
NO_MODEL = "nowhere:no-such-model"  # an error about it would show that the model came first

# Command -> its arguments without the output, and the option that names that.
WRITING: dict[str, tuple[tuple[str, ...], str]] = {
    "explain": (("explain", CHELSEA, "--model", NO_MODEL), "-o"),
    "query": (("query", CHELSEA, "--url", "http://127.0.0.1:1"), "-o"),
    "demo": (("demo", CHELSEA, "--model", NO_MODEL), "-o"),
    "demo's archive": (("demo", CHELSEA, "--model", NO_MODEL), "--store"),
    "archive": (("archive", "--model", NO_MODEL), "--store"),
    "serve": (("serve", "--model", NO_MODEL), "--store"),
    "patches": (("patches", "images", "--layer", "conv", "--model", NO_MODEL), "-o"),
    "activations": (("activations", CHELSEA, "--layer", "conv", "--model", NO_MODEL), "-o"),
    "project": (("project", "no-gallery"), "-o"),
    "features": (("features", "images", "--model", NO_MODEL), "-o"),
    "gallery build": (("gallery", "build", "images", "--model", NO_MODEL), "-o"),
    "evaluate": (("evaluate", "images", "--model", NO_MODEL), "-o"),
    "atlas": (("atlas", NO_MODEL, "images"), "-o"),
    "lecture": (("lecture", "--model", NO_MODEL), "-o"),
    "explore": (("explore", NO_MODEL), "-o"),
    "export bundle": (("export", "bundle", "--model", NO_MODEL), "-o"),
    "ascent": (("ascent", "koala", "--model", NO_MODEL), "-o"),
    "fool": (("fool", CHELSEA, "--target", "koala", "--model", NO_MODEL), "-o"),
    "dream": (("dream", CHELSEA, "--model", NO_MODEL), "-o"),
    "invert": (("invert", CHELSEA, "--model", NO_MODEL), "-o"),
    "texture": (("texture", CHELSEA, "--model", NO_MODEL), "-o"),
    "jobs run": (("jobs", "run", "batch.yaml"), "-o"),
}
WRITING_A_FILE: dict[str, tuple[tuple[str, ...], str]] = {
    "filters": (("filters", "--model", NO_MODEL), "x.png"),
    "neighbours": (("neighbours", CHELSEA, "--gallery", "no-gallery", "--model", NO_MODEL), "x.png"),
    "export": (("export", "scores", "--model", NO_MODEL), "x.onnx"),
    "export table": (("export", "table", "--models", NO_MODEL, "--kinds", "scores"), "x.json"),
}
# Those that write into any folder, beside what is there.
SHARING = ("demo", "demo's archive", "archive", "serve", "export bundle")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the command runs in."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "chelsea.png").write_bytes(Path(CHELSEA).read_bytes())
    jobs = [{"kind": "ascent", "classes": ["koala"], "model": NO_MODEL}]
    (tmp_path / "batch.yaml").write_text(yaml.safe_dump({"jobs": jobs}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line by which the command refuses."""
    monkeypatch.setattr("sys.argv", ["convlens", *arguments])
    # main() has SIGTERM end its own process, not that of the tests.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))  # a job's bar has a line, too
    assert NO_MODEL not in line
    return line


@pytest.mark.parametrize("place", ["letter.txt", "letter.txt/out", "/proc/out"])
@pytest.mark.parametrize("command", WRITING)
def test_a_place_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    command: str,
    place: str,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (workplace / "letter.txt").write_text("dear")
    arguments, option = WRITING[command]
    assert place in refusal(monkeypatch, capsys, *arguments, option, place)
    assert (workplace / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("command", [name for name in WRITING if name not in SHARING])
def test_a_folder_of_other_things_is_refused_before_a_model_is_loaded(
    command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "out").mkdir()
    (workplace / "out" / "index.html").write_text("my page")
    arguments, option = WRITING[command]
    assert "out" in refusal(monkeypatch, capsys, *arguments, option, "out")
    assert [path.name for path in (workplace / "out").iterdir()] == ["index.html"]


@pytest.mark.parametrize("place", ["letter.txt/{}", "/proc/{}"])
@pytest.mark.parametrize("command", WRITING_A_FILE)
def test_a_file_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    command: str,
    place: str,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (workplace / "letter.txt").write_text("dear")
    arguments, name = WRITING_A_FILE[command]
    assert place.partition("/{}")[0] in refusal(monkeypatch, capsys, *arguments, "-o", place.format(name))


def test_the_folder_that_one_is_in_is_not_replaced(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "inside").mkdir()
    monkeypatch.chdir(workplace / "inside")
    arguments, option = WRITING["explain"]
    assert "runs in and cannot be replaced" in refusal(monkeypatch, capsys, *arguments, option, ".")


def test_the_folder_of_another_job_is_refused_before_a_model_is_loaded(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "out").mkdir()
    (workplace / "out" / "job.yaml").write_text("identity: abc\nkind: ascent\nclasses: [koala]\n")
    arguments = ("dream", CHELSEA, "--model", NO_MODEL)
    assert "out holds a job with other kind, model, seed" in refusal(monkeypatch, capsys, *arguments, "-o", "out")


def test_every_command_with_an_output_is_among_those_above() -> None:
    options = {"output", "store", "table"}
    writing = set()
    for name in COMMANDS:
        command = get_command(build([name])).commands[name]  # type: ignore[attr-defined]
        parts = getattr(command, "commands", {"": command})
        writing |= {f"{name} {part}".strip() for part in parts if options & {o.name for o in parts[part].params}}
    assert writing <= {*WRITING, *WRITING_A_FILE}


def fill_the_disk(folder: Path, arguments: list[str]) -> None:
    """The command, where no file may have more than 4 kB; the check before the work does not see that."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    run_command_line(folder, arguments)


def test_a_disk_that_is_full_in_the_end_is_one_line(workplace: Path) -> None:
    (workplace / "net.py").write_text(
        "from torch import nn\n\n\ndef factory():\n"
        "    return nn.Sequential(nn.Conv2d(3, 64, 9), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3))\n"
    )
    arguments = ["filters", "--model", "file:net.py:factory?size=32", "-o", "filters.png"]
    code, said = Killable(fill_the_disk, workplace, arguments).ended(within_s=100)
    assert code == 2
    assert "error: File too large" in " ".join(said.split())
    assert "Traceback" not in said
