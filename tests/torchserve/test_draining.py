"""Waiting for answers, on management APIs that say what a test has them say."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from convlens.torchserve.container import wait_until_idle
from convlens.torchserve.server import Server
from convlens.torchserve.server_config import free_ports


@dataclass
class QueueStates:
    """``pending`` of the queue, one look after the other, the last again and again; None: the answer is 503."""

    pending: list[int | None]
    pids: list[int] = field(default_factory=list)
    looks: int = 0
    delay_s: float = 0.0


@contextmanager
def management(states: QueueStates, folder: Path) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(states.delay_s)
            pending = states.pending[min(states.looks, len(states.pending) - 1)]
            states.looks += 1
            entry = {"workers": [{"pid": pid} for pid in states.pids], "jobQueueStatus": {"pendingRequests": pending}}
            body = json.dumps([entry]).encode()
            with suppress(ConnectionError):  # of one who has stopped waiting
                self.send_response(503 if pending is None else 200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        java = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        try:
            ports = replace(free_ports(), management=http.server_port)
            yield Server(("net",), ports, folder, auth=False, temp_dir=folder, process=java)
        finally:
            java.kill()
            java.wait()
            http.shutdown()
            thread.join()


@pytest.mark.parametrize("before", [[], [3], [None, None], [0, 0, 0, 1], [0, 0, None]])
def test_four_looks_in_a_row_must_find_nothing(before: list[int | None], tmp_path: Path) -> None:
    states = QueueStates([*before, 0])
    with management(states, tmp_path) as server:
        assert wait_until_idle(server, within_s=30)
    assert states.looks == len(before) + 4


@pytest.mark.parametrize("pending", [1, None])
def test_it_gives_up_in_time(pending: int | None, tmp_path: Path) -> None:
    with management(QueueStates([pending]), tmp_path) as server:
        started = time.monotonic()
        assert not wait_until_idle(server, within_s=0.5)
        assert time.monotonic() - started > 0.5


def test_a_server_too_busy_to_answer_is_not_quiet_and_not_waited_for_beyond_the_time(tmp_path: Path) -> None:
    with management(QueueStates([0], delay_s=4), tmp_path) as server:
        started = time.monotonic()
        assert not wait_until_idle(server, within_s=0.5)
        assert time.monotonic() - started < 3.5


def test_a_worker_that_computes_is_waited_for(tmp_path: Path) -> None:
    code = "import time; until = time.process_time() + 2\nwhile time.process_time() < until: pass\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code]) as worker:
        try:
            with management(QueueStates([0], pids=[worker.pid]), tmp_path) as server:
                assert not wait_until_idle(server, within_s=1)
                assert wait_until_idle(server, within_s=60)
        finally:
            worker.kill()


def test_a_worker_that_computes_is_waited_for_while_it_gets_no_core(tmp_path: Path) -> None:
    code = "import time; until = time.process_time() + 0.5\nwhile time.process_time() < until: pass\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code]) as worker:
        try:
            worker.send_signal(signal.SIGSTOP)
            with management(QueueStates([0], pids=[worker.pid]), tmp_path) as server:
                assert not wait_until_idle(server, within_s=2)
                worker.send_signal(signal.SIGCONT)
                assert wait_until_idle(server, within_s=60)
        finally:
            worker.kill()


def test_one_that_ended_has_nothing_in_flight(tmp_path: Path) -> None:
    with management(QueueStates([1]), tmp_path) as server:
        server.process.kill()
        server.process.wait()
        assert wait_until_idle(server, within_s=30)
