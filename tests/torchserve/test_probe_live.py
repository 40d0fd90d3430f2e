"""The probe against a real TorchServe: it tells the truth where ``/ping`` does not."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from convlens.torchserve import archive, launcher, server, server_config
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.torchserve.java import find_java
from convlens.torchserve.launcher import Settings, end_group, members
from convlens.torchserve.server import Server

pytestmark = pytest.mark.live

# Answers what the real handler does, without a network, so that only the server is under test.
ANSWERS = """
import json

class Handler:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [json.dumps({"predictions": [{"index": 0, "label": "grey", "probability": 1.0}]})] * len(data)
"""
REFUSES_TO_START = """
class Handler:
    def initialize(self, context):
        raise ValueError("these weights are damaged")
"""


def build(folder: Path, name: str, code: str) -> Path:
    handler = folder / f"handler_of_{name}.py"
    handler.write_text(code)
    options = ArchiveOptions(handler=handler, max_batch_delay_ms=5)
    return archive.build(name=name, model_dir=None, store=folder / "store", options=options)


def probe(*arguments: str) -> tuple[int, str]:
    """As a container runs it: a process of its own."""
    command = [sys.executable, "-m", "convlens.torchserve.health", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def until(right: Callable[[], bool], *, within_s: float) -> bool:
    ends = time.monotonic() + within_s
    while not (found := right()) and time.monotonic() < ends:
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("probed")
    archives = {name: build(folder, name, ANSWERS) for name in ("convlens", "other")}
    with server.running(archives=archives, run_dir=folder / "run") as started:
        yield started


def rest(live: Server) -> list[str]:
    return ["--url", live.inference_url, "--key-file", str(live.key_file)]


def grpc(live: Server) -> list[str]:
    return ["--grpc", live.grpc_address, "--key-file", str(live.key_file)]


DOORS = pytest.mark.parametrize("door", [rest, grpc])


@DOORS
def test_a_server_that_answers_is_well(live: Server, door: Any) -> None:
    code, said = probe(*door(live), "--model", "convlens", "--model", "other")
    assert (code, said[:16]) == (0, "convlens, other:"), said


@DOORS
def test_a_model_that_is_not_there_is_named(live: Server, door: Any) -> None:
    code, said = probe(*door(live), "--model", "convlens", "--model", "nowhere")
    assert code == 1 and said.startswith("nowhere: ") and "says 404" in said


@DOORS
def test_without_the_token_it_says_where_to_get_it(live: Server, door: Any) -> None:
    code, said = probe(*door(live)[:2])
    assert code == 1 and "says 400" in said and "CONVLENS_TOKEN" in said


def test_the_command_line_s_does_the_same(live: Server) -> None:
    command = [sys.executable, "-c", "from convlens.cli.main import main; main()", "probe", *rest(live)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("convlens: ")
    done = subprocess.run([*command, "--model", "nowhere"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("nowhere: ")
    assert "Traceback" not in done.stderr


def test_a_killed_worker_shows_until_torchserve_has_put_another_in_its_place(live: Server) -> None:
    def worker_of(name: str) -> psutil.Process:
        found = [one for one in members(live.pid) if f"handler_of_{name}.py" in _files_in(one)]
        assert len(found) == 1
        return found[0]

    worker = worker_of("convlens")
    os.kill(worker.pid, signal.SIGKILL)
    code, said = probe(*rest(live), "--timeout", "1")
    assert code == 1 and said.startswith("convlens: ")
    assert probe(*rest(live), "--model", "other")[0] == 0
    assert until(lambda: probe(*rest(live))[0] == 0, within_s=30)
    assert worker_of("convlens").pid != worker.pid


def test_a_model_that_will_not_load_shows_while_ping_says_all_is_well(tmp_path: Path) -> None:
    archives = {"convlens": build(tmp_path, "convlens", REFUSES_TO_START)}
    run_dir, ports, temp = launcher.fresh(tmp_path / "run"), server_config.free_ports(), launcher.temp_dir()
    launcher.write_config(run_dir, archives, ports=ports, auth=False, settings=Settings())
    process = launcher.launch(find_java() / "bin" / "java", run_dir, temp, threads=1)
    try:
        assert until(lambda: ping(ports.inference) == 200, within_s=60)
        code, said = probe("--url", f"http://127.0.0.1:{ports.inference}", "--timeout", "2")
        assert ping(ports.inference) == 200
        assert code == 1 and said.startswith("convlens: ")
    finally:
        end_group(process, grace_s=5)
        shutil.rmtree(temp)


def ping(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with suppress(OSError):
        connection.request("GET", "/ping")
        return connection.getresponse().status
    return 0


def _files_in(process: psutil.Process) -> list[str]:
    """What lies in the folder that it works in: that of its unpacked archive."""
    with suppress(psutil.Error, OSError):
        return [path.name for path in Path(process.cwd()).iterdir()]
    return []
