"""``convlens demo`` and ``convlens serve`` against a real TorchServe, from a folder of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import skimage

from convlens.torchserve.server_config import free_ports

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
    # The cat's nearest is another view of the cat, the cup's another view of the cup.
    assert "chelsea-" in done.stdout
    assert "coffee-" in done.stdout
    report = (workplace / "demo" / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/") > 10
    assert (workplace / "model_store" / "convlens.mar").is_file()
    # The tests' own cache does not hold what runs graphs in a page.
    assert "no explorer: " in done.stderr and "convlens.explorer.browser_runtime" in done.stderr
    assert not [process for process in psutil.process_iter(["cwd"]) if str(workplace) in str(process.info["cwd"])]


@pytest.fixture
def served(workplace: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``convlens serve`` on a free port, and what it printed."""
    port = free_ports().inference
    log = workplace / "serve.out"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--port", str(port)], cwd=workplace, stdout=out, stderr=subprocess.PIPE, text=True
        )
    try:
        deadline = time.monotonic() + 180
        while "explanations/convlens" not in (said := log.read_text()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "not serving after 180 s"
            time.sleep(0.3)
        yield process, said
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.mark.skipif(not shutil.which("curl"), reason="the printed lines call curl")
def test_every_line_that_serve_prints_works_as_printed(
    workplace: Path, served: tuple[subprocess.Popen[str], str]
) -> None:
    process, said = served
    (workplace / "cat.jpg").write_bytes((PHOTOGRAPHS / "chelsea.png").read_bytes())
    token = subprocess.run([*COMMAND, "token"], cwd=workplace, capture_output=True, text=True, check=True, timeout=60)
    lines = [line.strip() for line in said.splitlines() if line.strip().startswith("curl")]
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
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert not [found for found in psutil.process_iter(["cwd"]) if str(workplace) in str(found.info["cwd"])]
