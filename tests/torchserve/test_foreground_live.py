"""The server in the foreground, as a container runs it: it answers what is in flight before it ends."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from live_server import photograph

from convlens.models import load, pack
from convlens.torchserve import archive, server_config
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.torchserve.health import probe_all
from convlens.torchserve.launcher import group_members
from convlens.torchserve.server_config import Ports, free_ports

pytestmark = pytest.mark.live

SWEEP = '{"methods": [{"method": "occlusion", "options": {"window": 32, "stride": %d}}], "output": []}'


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreground")
    pack(load("packaged:efficientnet_lite0", device="cpu"), folder / "model")
    options = ArchiveOptions(max_batch_delay_ms=1)
    return archive.build(name="net", model_dir=folder / "model", store=folder / "store", options=options)


@dataclass(frozen=True)
class Foreground:
    process: subprocess.Popen[str]
    ports: Ports
    run_dir: Path
    lines: queue.Queue[str]

    def wait_for(self, text: str, *, within_s: float = 120) -> str:
        until = time.monotonic() + within_s
        while text not in (line := self.lines.get(timeout=max(0.1, until - time.monotonic()))):
            pass
        return line

    def sweep(self, stride: int) -> httpx.Response:
        form = {"data": ("a", photograph()), "params": (None, SWEEP % stride)}
        key = (self.run_dir / "key_file.json").read_text().split('"inference"')[1].split('"key": "')[1].split('"')[0]
        headers = {"Authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{self.ports.inference}/predictions/net"
        return httpx.post(url, files=form, headers=headers, timeout=120, trust_env=False)


@contextmanager
def foreground(archived: Path, folder: Path, *options: str) -> Iterator[Foreground]:
    ports = free_ports()
    folder.mkdir(exist_ok=True)
    server_config.write(folder / "config.properties", server_config.read(server_config.committed()) | {
        "inference_address": f"http://127.0.0.1:{ports.inference}",
        "management_address": f"http://127.0.0.1:{ports.management}",
        "metrics_address": f"http://127.0.0.1:{ports.metrics}",
        "grpc_inference_port": str(ports.grpc_inference),
        "grpc_management_port": str(ports.grpc_management),
        "metrics_config": str(server_config.committed().parent / "handlers" / "metrics.yaml"),
    })  # fmt: skip
    command = [sys.executable, "-m", "convlens.torchserve.container", str(archived), "--run-dir", str(folder / "run")]
    process = subprocess.Popen(
        [*command, "--config", str(folder / "config.properties"), *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=lambda: [lines.put(line) for line in process.stdout or ()], daemon=True).start()
    try:
        yield Foreground(process, ports, folder / "run", lines)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def served(archived: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreground]:
    """One that serves; the last test that takes it ends it."""
    with foreground(archived, tmp_path_factory.mktemp("served")) as live:
        live.wait_for("convlens serves packaged:efficientnet_lite0")  # which a worker says
        live.wait_for("serving net on 127.0.0.1")
        yield live


def test_what_the_workers_say_is_on_its_standard_output(served: Foreground) -> None:
    assert served.sweep(32).status_code == 200
    served.wait_for('"logger":"convlens.access"', within_s=10)


def test_on_sigterm_it_answers_what_is_in_flight_and_ends(served: Foreground) -> None:
    url = f"http://127.0.0.1:{served.ports.inference}"
    assert "answers" in probe_all(url, ["net"], key_file=served.run_dir / "key_file.json")
    java = next(child for child in psutil.Process(served.process.pid).children() if "java" in child.name())
    with ThreadPoolExecutor(2) as pool:
        # The second waits in the queue while the first is computed.
        first = pool.submit(served.sweep, 8)
        time.sleep(0.7)
        second = pool.submit(served.sweep, 16)
        time.sleep(0.3)
        begun = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in (first, second)] == [200, 200]
        answered_s = time.monotonic() - begun
    assert served.process.wait(60) == 0
    assert answered_s > 1, "both were in flight when it was asked to stop"
    assert not group_members(java.pid)
    served.wait_for("stopped")


def test_it_waits_no_longer_than_it_is_allowed(archived: Path, tmp_path: Path) -> None:
    with foreground(archived, tmp_path / "f", "--drain", "0.5") as live, ThreadPoolExecutor(1) as pool:
        live.wait_for("serving net on 127.0.0.1")
        answer = pool.submit(live.sweep, 5)
        time.sleep(1.0)
        begun = time.monotonic()
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(60) == 0
        assert time.monotonic() - begun < 15
        live.wait_for("are cut off")
        failure = answer.exception()
        assert isinstance(failure, httpx.HTTPError) or answer.result().status_code >= 500
