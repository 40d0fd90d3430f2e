"""``convlens demo`` and ``convlens serve`` against a real TorchServe, from a folder of their own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import skimage
from typer.testing import CliRunner, Result

from convlens.cli.main import build
from convlens.cli.photographs import OTHERS

ROOT = Path(__file__).parent.parent.parent
VENV = ".venv/bin/convlens"
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
COMMAND = [sys.executable, "-c", "from convlens.cli.main import main; main()"]

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run in; the second test finds there what the first one built."""
    return tmp_path_factory.mktemp("workplace")


def test_the_demo_explains_photographs_through_a_live_server_and_stops_it(workplace: Path) -> None:
    pictures = [str(PHOTOGRAPHS / name) for name in ("chelsea.png", "coffee.png")]
    done = subprocess.run(
        [*COMMAND, "demo", *pictures], cwd=workplace, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert any(cat in done.stdout for cat in ("tiger cat", "Egyptian cat", "tabby"))
    assert "espresso" in done.stdout
    # Nearest is one of the other photographs, no view of the cat or the cup itself.
    neighbours = [cell for line in done.stdout.splitlines() if "│" in line for cell in line.split("│")[2:]]
    assert any(Path(name).stem in cell for cell in neighbours for name in OTHERS)
    assert not any(own in cell for cell in neighbours for own in ("chelsea", "coffee"))
    report = (workplace / "demo" / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/") > 10
    assert (workplace / "model_store" / "convlens.mar").is_file()
    # The tests' own cache does not hold what runs graphs in a page.
    assert "no explorer: " in done.stderr and "convlens.explorer.browser_runtime" in done.stderr
    assert not [process for process in psutil.process_iter(["cwd"]) if str(workplace) in str(process.info["cwd"])]


@pytest.fixture(scope="module")
def served(workplace: Path) -> Iterator[str]:
    """What ``convlens serve`` printed, on the usual ports or the next free ones; it is stopped without remains."""
    log = workplace / "serve.out"
    with log.open("w") as out:
        process = subprocess.Popen([*COMMAND, "serve"], cwd=workplace, stdout=out, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 180
        while "convlens query" not in (said := log.read_text()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "not serving after 180 s"
            time.sleep(0.3)
        (workplace / "my").mkdir()
        for place in ("cat.jpg", "my/cat.jpg"):
            shutil.copy(PHOTOGRAPHS / "chelsea.png", workplace / place)
        yield said
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert not [found for found in psutil.process_iter(["cwd"]) if str(workplace) in str(found.info["cwd"])]
    assert not (workplace / ".convlens" / "server" / "server.json").exists()


@pytest.mark.skipif(not shutil.which("curl"), reason="the printed lines call curl")
def test_every_curl_line_that_serve_prints_works_as_printed(workplace: Path, served: str) -> None:
    token = subprocess.run([*COMMAND, "token"], cwd=workplace, capture_output=True, text=True, check=True, timeout=60)
    lines = [line.strip() for line in served.splitlines() if line.strip().startswith("curl")]
    assert len(lines) == 4
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", f"{line} --silent --show-error --max-time 120 --noproxy '*'"],
            env={**os.environ, "TOKEN": token.stdout.strip()},
            cwd=workplace,
            capture_output=True,
            text=True,
            check=True,
            timeout=130,
        )
        reply = json.loads(done.stdout)
        assert reply["predictions"][0]["label"] in ("tiger cat", "Egyptian cat", "tabby"), line
        assert bool(reply["explanations"]) == ("explanations" in line or "methods" in line)


def convlens(workplace: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    """The command of a line, in that folder and with no token in the environment."""
    monkeypatch.chdir(workplace)
    monkeypatch.delenv("CONVLENS_TOKEN", raising=False)
    arguments = shlex.split(line)[1:]
    return CliRunner().invoke(build(arguments), arguments, catch_exceptions=False)


def queries(document: Path) -> list[str]:
    return [line for line in document.read_text(encoding="utf-8").splitlines() if line.startswith(f"{VENV} query")]


def test_every_query_line_that_serve_prints_works_as_printed(
    workplace: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line.strip() for line in served.splitlines() if line.strip().startswith(VENV)]
    assert [("--grpc" in line, "-o answers" in line) for line in lines] == [(False, True), (True, True)]
    for line in lines:
        done = convlens(workplace, line, monkeypatch)
        assert done.exit_code == 0, done.output
        assert "tiger cat" in done.stdout
        shutil.rmtree(workplace / "answers")


def test_the_query_of_the_readme_works_as_it_stands(
    workplace: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = queries(ROOT / "README.md")
    assert "--grpc" in line
    done = convlens(workplace, line, monkeypatch)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (workplace / "answers" / "cat").glob("*.npz")) == [
        "occlusion.npz",
        "saliency.npz",
    ]


@pytest.mark.parametrize("options", ["", "--grpc", "--url .convlens/server"])
def test_query_takes_a_folder_and_finds_the_ports_and_the_token(
    workplace: Path, served: str, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    shutil.copy(PHOTOGRAPHS / "coffee.png", workplace / "my" / "coffee.png")
    done = convlens(workplace, f"convlens query my --methods saliency {options}", monkeypatch)
    assert done.exit_code == 0, done.output
    assert "tiger cat" in done.stdout
    assert "espresso" in done.stdout


def test_the_demo_takes_a_folder_and_a_server_by_the_folder_it_runs_in(
    workplace: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "convlens demo my --url .convlens/server --methods saliency --no-explorer -o elsewhere"
    done = convlens(workplace, line, monkeypatch)
    assert done.exit_code == 0, done.output
    assert "tiger cat" in done.stdout
    assert (workplace / "elsewhere" / "report.html").is_file()


def test_the_probe_finds_the_server_and_its_models(
    workplace: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = convlens(workplace, "convlens probe", monkeypatch)
    assert done.exit_code == 0, done.output


def test_every_port_that_serve_prints_is_open(served: str) -> None:
    printed = dict(re.findall(r"^  (REST|gRPC|metrics|management) +(\S+?)(?:,|$)", served, flags=re.MULTILINE))
    by_grpc = re.search(r"by gRPC (\S+)", served)
    assert by_grpc is not None
    with httpx.Client(trust_env=False, timeout=20) as client:
        assert client.get(printed["metrics"]).status_code == 200
        # Without the token it is refused, by the management.
        assert "Token Authorization failed" in client.get(f"{printed['management']}/models").text
        assert client.get(f"{printed['REST']}/").status_code == 405, "TorchServe serves no page"
    for address in (printed["gRPC"], by_grpc.group(1)):
        host, _, port = address.partition(":")
        socket.create_connection((host, int(port)), timeout=10).close()
