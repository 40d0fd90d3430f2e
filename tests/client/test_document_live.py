"""docs/client.md says what is true: its Python runs against a live server, its command lines are understood."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
from live_server import PHOTOGRAPHS, Live
from PIL import Image
from typer.testing import CliRunner

from convlens import client
from convlens.cli.main import COMMANDS, build

TEXT = (Path(__file__).parent.parent.parent / "docs" / "client.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_the_python_block_runs_as_it_stands_but_for_the_port(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = blocks("python")
    assert "http://127.0.0.1:8080" in block
    monkeypatch.chdir(tmp_path)
    place = tmp_path / ".convlens" / "server"
    place.mkdir(parents=True)
    (place / "key_file.json").write_bytes(live.server.key_file.read_bytes())
    (tmp_path / "cat.jpg").write_bytes((PHOTOGRAPHS / "chelsea.png").read_bytes())
    exec(block.replace("http://127.0.0.1:8080", live.server.inference_url), {})
    assert capsys.readouterr().out.splitlines() == ["tiger cat", "[(1, 3, 224, 224), (1, 1, 224, 224)]"]
    assert Image.open(tmp_path / "overlay.png").size == (224, 224)


def test_every_command_line_names_a_command_and_its_options() -> None:
    lines = [line for block in blocks("console") for line in re.findall(r"\.venv/bin/convlens ([^)\n]+)", block)]
    assert len(lines) == 3
    for command, *arguments in map(shlex.split, lines):
        assert command in COMMANDS
        said = CliRunner().invoke(build([command]), [command, "--help"], env={"COLUMNS": "200"}).output
        for argument in arguments:
            assert not argument.startswith("-") or argument in said


def test_every_call_setting_and_error_is_described() -> None:
    calls = [name for name, _ in inspect.getmembers(client.BaseClient, inspect.isfunction) if not name.startswith("_")]
    for name in set(calls) - {"close"}:
        assert f"| `{name}(" in TEXT
    for kind in (client.Client, client.GrpcClient):
        for name in list(inspect.signature(kind).parameters)[1:]:
            assert f"`{name}`" in TEXT
    for name in set(client.__all__) - {"BaseClient"}:
        assert name in TEXT
