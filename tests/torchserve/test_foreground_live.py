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
from convlens.torchserve.launcher import members
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
    text = server_config.dump(server_config.read(server_config.committed()) | {
        "inference_address": f"http://127.0.0.1:{ports.inference}",
        "management_address": f"http://127.0.0.1:{ports.management}",
        "metrics_address": f"http://127.0.0.1:{ports.metrics}",
        "grpc_inference_port": str(ports.grpc_inference),
        "grpc_management_port": str(ports.grpc_management),
        "metrics_config": str(server_config.committed().parent / "handlers" / "metrics.yaml"),
    })  # fmt: skip
    (folder / "config.properties").write_text(text)
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


def test_it_serves_and_on_sigterm_answers_what_is_in_flight_and_ends(archived: Path, tmp_path: Path) -> None:
    with foreground(archived, tmp_path / "f") as live, ThreadPoolExecutor(2) as pool:
        live.wait_for("serving net on 127.0.0.1")
        url = f"http://127.0.0.1:{live.ports.inference}"
        assert "answers" in probe_all(url, ["net"], key_file=live.run_dir / "key_file.json")
        java = next(child for child in psutil.Process(live.process.pid).children() if "java" in child.name())
        # The second waits in the queue while the first is computed.
        first = pool.submit(live.sweep, 8)
        time.sleep(0.7)
        second = pool.submit(live.sweep, 16)
        time.sleep(0.3)
        begun = time.monotonic()
        live.process.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in (first, second)] == [200, 200]
        answered_s = time.monotonic() - begun
        assert live.process.wait(60) == 0
        assert answered_s > 1, "both were in flight when it was asked to stop"
        assert not members(java.pid)
        live.wait_for("stopped")


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


def test_a_signal_at_any_moment_is_heard() -> None:
    """Python runs its handler wherever the main thread is, so also within whatever it waits by."""
    waits = (
        "import signal; from convlens.torchserve.container import asked_within, heard; count = 0\n"
        "came = heard(signal.SIGTERM); print('waiting', flush=True)\n"
        "while count < 2000: count += asked_within(came, 1e-4)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    )
    with subprocess.Popen([sys.executable, "-c", waits], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        until = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < until:
            child.send_signal(signal.SIGTERM)
            time.sleep(1e-5)
        child.kill()
        assert child.wait(10) == 0, "it hangs, or its handler was called within itself"


def test_what_the_workers_say_is_on_its_standard_output(archived: Path, tmp_path: Path) -> None:
    with foreground(archived, tmp_path / "f") as live:
        live.wait_for("convlens serves packaged:efficientnet_lite0")
        live.wait_for("serving net on 127.0.0.1")
        assert live.sweep(32).status_code == 200
        live.wait_for('"logger":"convlens.access"', within_s=10)


def test_a_missing_archive_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convlens.torchserve.container", str(tmp_path / "none.mar")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: no archive {tmp_path / 'none.mar'}; build one with `convlens archive`\n"


@pytest.mark.parametrize("option", ["linger", "drain"])
@pytest.mark.parametrize("given", ["-1", "nan", "inf", "soon", ""])
@pytest.mark.parametrize("said", ["by flag", "by environment"])
def test_a_time_that_is_none_is_refused_by_name(option: str, given: str, said: str) -> None:
    command = [sys.executable, "-m", "convlens.torchserve.container", "net.mar"]
    flags, more = ([f"--{option}={given}"], {}) if said == "by flag" else ([], {f"CONVLENS_{option.upper()}_S": given})
    done = subprocess.run(
        command + flags, env=os.environ | more, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert f"--{option}: {given!r} is no time of 0 to 86400 seconds" in done.stderr


def test_a_host_that_is_no_address_is_refused_by_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convlens.torchserve.container", "net.mar", "--host", "example"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--host 'example' is no IPv4 address" in done.stderr
