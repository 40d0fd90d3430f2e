"""One TorchServe: started as a child in a process group and a folder of its own, stopped without remains."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from convlens import __version__
from convlens.client.run_dir import ServerRecord, remove_record
from convlens.errors import ServerError
from convlens.torchserve import launcher, server_config
from convlens.torchserve.java import find_java
from convlens.torchserve.launcher import ServerSettings, end_group
from convlens.torchserve.readiness import wait_until_ready
from convlens.torchserve.server_config import Ports
from convlens.types import no_op

TokenKind = Literal["inference", "management"]
_DEFAULTS = ServerSettings()
_GRACE_S = 10.0


@dataclass(frozen=True)
class Server:
    """A TorchServe that runs, or ran. ``run_dir`` keeps its configuration, its logs and, while it runs, its tokens and
    the record of its addresses.

    ``models`` are the names of its model entries; ``auth``: whether it asks every client for a token.
    """

    models: tuple[str, ...]
    ports: Ports
    run_dir: Path
    auth: bool
    temp_dir: Path = field(repr=False)
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        """Of the Java process, which leads the process group that its workers are in."""
        return self.process.pid

    @property
    def inference_url(self) -> str:
        return f"http://{server_config.LOOPBACK}:{self.ports.inference}"

    @property
    def management_url(self) -> str:
        return f"http://{server_config.LOOPBACK}:{self.ports.management}"

    @property
    def metrics_url(self) -> str:
        return f"http://{server_config.LOOPBACK}:{self.ports.metrics}"

    @property
    def grpc_address(self) -> str:
        """``host:port`` of gRPC inference."""
        return f"{server_config.LOOPBACK}:{self.ports.grpc_inference}"

    @property
    def record(self) -> ServerRecord:
        """What its run folder says of it while it runs."""
        return ServerRecord(
            rest=self.inference_url,
            grpc=self.grpc_address,
            metrics=f"{self.metrics_url}/metrics",
            management=self.management_url,
            management_grpc=f"{server_config.LOOPBACK}:{self.ports.grpc_management}",
            models=self.models,
            auth=self.auth,
            version=__version__,
        )

    @property
    def logs(self) -> Path:
        return self.run_dir / "logs"

    @property
    def key_file(self) -> Path:
        return self.run_dir / "key_file.json"

    def token(self, kind: TokenKind) -> str:
        """The bearer token of one API, read anew each time. A secret: never log it. Raises ServerError."""
        # A server that is started again writes new ones.
        try:
            key = json.loads(self.key_file.read_text(encoding="utf-8"))[kind]["key"]
        except (OSError, ValueError, KeyError) as error:
            raise ServerError(f"no {kind} token in {self.key_file}; does the server run, with auth=True?") from error
        return str(key)

    def headers(self, kind: TokenKind) -> dict[str, str]:
        """The headers a request to that API needs: none when the server asks for no token."""
        return {"Authorization": f"Bearer {self.token(kind)}"} if self.auth else {}

    def ended(self) -> int | None:
        """The exit code of a server that is no longer there, else None."""
        return self.process.poll()


def start(
    *,
    archives: Mapping[str, Path],
    run_dir: Path,
    ports: Ports | None = None,
    auth: bool = True,
    timeout_s: float = 180.0,
    settings: ServerSettings = _DEFAULTS,
    probe: Callable[[Server], None] = no_op,
    on_step: Callable[[str], None] = no_op,
) -> Server:
    """Start TorchServe with these archives (model name -> .mar) and wait until every worker has loaded its model.

    ``ports``: free ones by default. ``probe`` is called at the end with the running server and should make a tiny
    inference, since a model that is loaded need not answer. Calls ``on_step`` with a line at each stage. Raises
    ServerError, or what ``probe`` raises, and then nothing is left running; the logs stay in ``run_dir``.
    """
    ports = ports or server_config.free_ports()
    server_config.require_free(ports)
    threads = launcher.worker_threads(settings, archives.values())
    java = find_java() / "bin" / "java"
    run_dir = launcher.prepare_run_dir(run_dir)
    launcher.write_config(run_dir, archives, ports=ports, auth=auth, settings=settings)
    on_step(f"starting TorchServe on {java}, {threads} threads a worker")
    with ExitStack() as cleanup:
        temp_dir = launcher.make_temp_dir()
        cleanup.callback(shutil.rmtree, temp_dir, ignore_errors=True)
        process = launcher.launch(java, run_dir, temp_dir, threads=threads, follow=settings.follow)
        server = Server(tuple(archives), ports, run_dir, auth, temp_dir, process)
        cleanup.callback(stop, server)
        wait_until_ready(server, timeout_s=timeout_s, on_step=on_step)
        probe(server)
        server.record.write(run_dir)
        cleanup.pop_all()
    return server


def stop(server: Server) -> None:
    """End the server and its workers, killing what has not ended within 10 s; harmless when repeated.

    Requests in flight are cut off. The logs stay; tokens, the record, sockets and unpacked archives go.
    """
    # Only once: afterwards the process id may belong to another program.
    if server.temp_dir.exists():
        end_group(server.process, grace_s=_GRACE_S)
        server.key_file.unlink(missing_ok=True)
        remove_record(server.run_dir)
        shutil.rmtree(server.temp_dir, ignore_errors=True)


@contextmanager
def running(
    *,
    archives: Mapping[str, Path],
    run_dir: Path,
    ports: Ports | None = None,
    auth: bool = True,
    timeout_s: float = 180.0,
    settings: ServerSettings = _DEFAULTS,
    probe: Callable[[Server], None] = no_op,
    on_step: Callable[[str], None] = no_op,
) -> Iterator[Server]:
    """A server for the length of a ``with``, as ``start`` makes it; stopped however that ends, Ctrl-C included."""
    server = start(
        archives=archives,
        run_dir=run_dir,
        ports=ports,
        auth=auth,
        timeout_s=timeout_s,
        settings=settings,
        probe=probe,
        on_step=on_step,
    )
    try:
        yield server
    finally:
        stop(server)
