"""The probe against a real TorchServe: it tells the truth where ``/ping`` does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from small_server import worker_of

from convlens.torchserve.server import Server


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


def rest(echo: Server) -> list[str]:
    return ["--url", echo.inference_url, "--key-file", str(echo.key_file)]


def grpc(echo: Server) -> list[str]:
    return ["--grpc", echo.grpc_address, "--key-file", str(echo.key_file)]


DOORS = pytest.mark.parametrize("door", [rest, grpc])


@DOORS
def test_a_server_that_answers_is_well(echo: Server, door: Any) -> None:
    code, said = probe(*door(echo), "--model", "convlens", "--model", "other")
    assert (code, said[:16]) == (0, "convlens, other:"), said


@DOORS
def test_a_model_that_is_not_there_is_named(echo: Server, door: Any) -> None:
    code, said = probe(*door(echo), "--model", "convlens", "--model", "nowhere")
    assert code == 1 and said.startswith("nowhere: ") and "says 404" in said


@DOORS
def test_without_the_token_it_says_where_to_get_it(echo: Server, door: Any) -> None:
    code, said = probe(*door(echo)[:2])
    assert code == 1 and "says 400" in said and "CONVLENS_TOKEN" in said


def test_the_command_line_s_does_the_same(echo: Server) -> None:
    command = [sys.executable, "-c", "from convlens.cli.main import main; main()", "probe", *rest(echo)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("convlens: ")
    done = subprocess.run([*command, "--model", "nowhere"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("nowhere: ")
    assert "Traceback" not in done.stderr


def test_a_killed_worker_shows_until_torchserve_has_put_another_in_its_place(echo: Server) -> None:
    worker = worker_of(echo, "convlens")
    os.kill(worker.pid, signal.SIGKILL)
    code, said = probe(*rest(echo), "--timeout", "1")
    assert code == 1 and said.startswith("convlens: ")
    assert probe(*rest(echo), "--model", "other")[0] == 0
    assert until(lambda: probe(*rest(echo))[0] == 0, within_s=30)
    assert worker_of(echo, "convlens").pid != worker.pid
