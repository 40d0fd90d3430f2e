"""A small network on Ray Serve, started by ``convlens serve --on ray`` as a user starts it; and nodes that join it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import yaml

from convlens.rayserve.server import CONFIG_FILE, LOOPBACK, RayServer, ports_of
from convlens.torchserve.server_config import free_ports

ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
_COMMAND = [sys.executable, "-c", "from convlens.cli.main import main; main()", "serve"]
_START_S, _STOP_S = 240.0, 90.0


@dataclass(frozen=True)
class Started:
    """The command's process, and the service that it runs."""

    process: subprocess.Popen[str]
    server: RayServer
    output: Path

    @property
    def config(self) -> dict[str, Any]:
        """What is deployed."""
        return dict(yaml.safe_load((self.server.run_dir / CONFIG_FILE).read_text(encoding="utf-8")))


@contextmanager
def started(archive: Path, folder: Path, *options: str) -> Iterator[Started]:
    """Until the ``with`` ends; then every process of it must have ended, after a Ctrl-C alone."""
    temp = folder / "tmp"
    temp.mkdir(parents=True)
    output, port = folder / "output.txt", free_ports().inference
    environment = {**os.environ, **ENVIRONMENT, "TMPDIR": _short(temp), "OMP_NUM_THREADS": "1"}
    with output.open("w") as file:
        process = subprocess.Popen(
            [*_COMMAND, str(archive), "--on", "ray", "--port", str(port), *options],
            cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            # Where the tests run in the background they ignore Ctrl-C, and what they start would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    try:
        server = _served(process, output, folder / ".convlens" / "server")
        family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        yield Started(process, server, output)
        process.send_signal(signal.SIGINT)
        process.wait(_STOP_S)
        assert not [pid for pid in family if _alive(pid)]
        assert list(Path(environment["TMPDIR"]).glob("cl-ray-*")) == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        Path(environment["TMPDIR"]).unlink()


def _short(folder: Path) -> str:
    """Ray's sockets need a short path, which pytest's folders do not have."""
    link = Path(tempfile.gettempdir()) / f"cl{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    return str(link)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _served(process: subprocess.Popen[str], output: Path, run_dir: Path) -> RayServer:
    until = time.monotonic() + _START_S
    while (said := re.search(r"cluster +(\S+)", output.read_text())) is None:
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < until, output.read_text()
        time.sleep(0.1)
    described = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    names = tuple(described["applications"][0]["args"]["archives"])
    return RayServer(names, *ports_of(described), run_dir, auth=True, address=said[1])


@contextmanager
def node(address: str, *, cpus: int = 1) -> Iterator[Any]:
    """Another node of the cluster, as processes of this machine; ``kill_node`` ends it the hard way."""
    from ray.cluster_utils import Cluster

    joined = Cluster(shutdown_at_exit=False)
    joined.head_node = SimpleNamespace(gcs_address=address)  # that of the running service
    memory = 100_000_000
    added = joined.add_node(wait=False, num_cpus=cpus, node_ip_address=LOOPBACK, object_store_memory=memory)
    try:
        yield added
    finally:
        kill_node(added)


def kill_node(added: Any) -> None:
    """SIGKILL for its raylet and agents, and for the workers that these leave."""
    pids = [started.process.pid for each in added.all_processes.values() for started in each]
    workers = [
        child for pid in pids if psutil.pid_exists(pid) for child in psutil.Process(pid).children(recursive=True)
    ]
    added.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
