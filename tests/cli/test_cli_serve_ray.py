"""``convlens serve --on ray``: what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from convlens.cli.main import build
from convlens.cli.serve_ray import lines_to_try
from convlens.rayserve.config import ServeArgs, config
from convlens.rayserve.server import RayServer, arguments, ports_of


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(tmp_path: Path, *arguments: str) -> str:
    given = ["serve", "--store", str(tmp_path), *arguments]
    result = CliRunner().invoke(build(given), given)
    assert result.exit_code != 0
    return f"{result.exception} {result.output}"


@pytest.mark.parametrize("option", [("--address", "127.0.0.1:1"), ("--config", "serve.yaml")])
def test_options_of_ray_are_refused_without_it(tmp_path: Path, option: tuple[str, str]) -> None:
    assert "add --on ray" in refused(tmp_path, str(tmp_path / "a.mar"), *option)


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "cannot read"), ("- 1", "no serve config file"), ("applications: []", "one application"),
     ("applications: [{args: {archives: {}}}]", "one application")],
)  # fmt: skip
def test_a_config_that_is_none_is_refused_by_name(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "serve.yaml"
    if text is not None:
        path.write_text(text)
    assert words in refused(tmp_path, "--on", "ray", "--config", str(path))


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    assert "no archive" in refused(tmp_path, str(tmp_path / "a.mar"), "--on", "ray")


def test_what_is_printed_names_every_address_and_no_token() -> None:
    live = RayServer(("net",), 8080, 7070, Path("run"), True, "127.0.0.1:6379")
    text = "\n".join(lines_to_try(live))
    for address in ("http://127.0.0.1:8080", "127.0.0.1:7070", "http://127.0.0.1:8080/metrics", "127.0.0.1:6379"):
        assert address in text
    assert "TOKEN=$(.venv/bin/convlens token)" in text


def test_a_config_says_its_ports_and_its_archives() -> None:
    args = ServeArgs(archives={"net": "/net.mar"})
    described = yaml.safe_load(yaml.safe_dump(config(args, host="127.0.0.1", port=1, grpc_port=2)))
    assert (arguments(described), ports_of(described)) == (args, (1, 2))
