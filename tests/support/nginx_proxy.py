"""The proxy of deploy/proxy, run by nginx in front of a real TorchServe."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from kubernetes_manifests import DEPLOY

from convlens.torchserve import server_config
from convlens.torchserve.server import Server

START = DEPLOY / "proxy" / "start.sh"
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])  # where nginx lies, for root alone
INSTALLED = bool(shutil.which("nginx", path=PATH) and shutil.which("openssl"))

ALICE, BOB = "alice-1234567890", "bob-1234567890"


@dataclass(frozen=True)
class Proxy:
    process: subprocess.Popen[str]
    folder: Path
    key_file: Path
    port: int
    metrics_port: int

    @property
    def certificate(self) -> Path:
        return self.folder / "tls" / "tls.crt"

    def client(self, **settings: Any) -> httpx.Client:
        trusted = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.Client(
            base_url=f"https://localhost:{self.port}", verify=trusted, trust_env=False, timeout=20, **settings
        )

    def ask(self, path: str = "predictions/convlens", *, token: str | None = ALICE, **sent: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        method, body = sent.pop("method", "POST"), sent.pop("body", b"0")
        with self.client() as client:
            return client.request(method, f"/{path}", content=body, headers=headers | sent)

    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def running_proxy(behind: Server, **given: str) -> Iterator[Proxy]:
    # Not below pytest's folder, which is root's alone: nginx gives its workers to another user.
    folder = Path(tempfile.mkdtemp(prefix="convlens-proxy-"))
    folder.chmod(0o711)
    key_file = folder / "key_file.json"
    for file in (behind.key_file, behind.run_dir / "server.json"):
        shutil.copy(file, folder)
    subprocess.run([START.with_name("test_certificate.sh"), folder / "tls"], check=True, capture_output=True)
    (folder / "clients.conf").write_text(f'"Bearer {ALICE}" alice;\n"Bearer {BOB}" bob;\n')
    port, metrics_port = two_free_ports()
    environment = {
        "PATH": PATH,
        "CONVLENS_KEY_FILE": str(key_file),
        "PROXY_TLS": str(folder / "tls"),
        "PROXY_CLIENTS": str(folder / "clients.conf"),
        "PROXY_DIR": str(folder / "run"),
        "PROXY_LISTEN": f"127.0.0.1:{port}",
        "PROXY_METRICS": f"127.0.0.1:{metrics_port}",
        "PROXY_REST": behind.inference_url.removeprefix("http://"),
        "PROXY_GRPC": behind.grpc_address,
        "PROXY_TORCHSERVE_METRICS": behind.metrics_url.removeprefix("http://"),
        **given,
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["sh", START], env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)
    try:
        started = Proxy(process, folder, key_file, port, metrics_port)
        assert until(lambda: listens(port), within_s=20), started.log()
        yield started
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


def two_free_ports() -> tuple[int, int]:
    ports = server_config.free_ports()
    return ports.inference, ports.metrics


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def until(right: Callable[[], bool], *, within_s: float) -> bool:
    ends = time.monotonic() + within_s
    while not (found := right()) and time.monotonic() < ends:
        time.sleep(0.1)
    return found
