"""``convlens serve --on ray``: the same archives on Ray Serve until Ctrl-C, with commands to try."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from convlens.cli.console import print_message, print_result
from convlens.cli.demo import require_inference
from convlens.errors import ServerError
from convlens.torchserve.archive import entries
from convlens.torchserve.launcher import ServerSettings, worker_threads

_GRPC_PORT = 7070


def serve_on_ray(
    archive: Path | None,
    *,
    run_dir: Path,
    port: int,
    grpc_port: int | None = None,
    auth: bool = True,
    address: str = "",
    config: Path | None = None,
) -> None:
    """Serve an archive, or what a serve config file says, until Ctrl-C."""
    server = _server()
    described = _read(config) if config else _described(archive, port=port, grpc_port=grpc_port, address=address)
    with server.running(
        described,
        run_dir=run_dir,
        auth=auth,
        address=address or "local",
        probe=require_inference,
        on_step=print_message,
    ) as live:
        print_result("\n".join(lines_to_try(live)))
        try:
            while True:
                time.sleep(1.0)
        except KeyboardInterrupt:
            print_message("stopping")


def lines_to_try(live: Any) -> Iterator[str]:
    """The addresses of the service, and shell commands that ask it."""
    header = ' -H "Authorization: Bearer $TOKEN"' if live.auth else ""
    yield f"serving {', '.join(live.models)} on Ray; stop with Ctrl-C"
    yield ""
    yield f"  REST     {live.inference_url}"
    yield f"  gRPC     {live.grpc_address}"
    yield f"  metrics  {live.metrics_url}/metrics"
    yield f"  cluster  {live.address}"
    yield ""
    yield "In another terminal, in this folder:"
    yield ""
    if live.auth:
        yield "  TOKEN=$(.venv/bin/convlens token)"
    for route in ("predictions", "explanations"):
        yield f"  curl -T cat.jpg{header} {live.inference_url}/{route}/{live.models[0]}"


def _described(archive: Path | None, *, port: int, grpc_port: int | None, address: str) -> dict[str, Any]:
    from convlens.rayserve.config import Location, ServeArgs, config

    if archive is None:
        raise ServerError("name an archive, or a serve config file by --config")
    path = archive.resolve()
    served = entries(path, name=path.stem) if path.is_file() else {path.name: path}
    threads = worker_threads(ServerSettings(), served.values()) if path.is_file() else 1
    args = ServeArgs(archives={name: str(each) for name, each in served.items()}, threads=threads)
    # On one machine a proxy is enough: those of other nodes would share its port, and take requests along at their end.
    location: Location = "EveryNode" if address else "HeadOnly"
    grpc_port = grpc_port or _free_from(_GRPC_PORT)
    return config(args, host="127.0.0.1", port=port, grpc_port=grpc_port, location=location)


def _read(config: Path) -> Mapping[str, Any]:
    try:
        described = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ServerError(f"cannot read {config}: {error}") from error
    if not isinstance(described, dict):
        raise ServerError(f"{config} is no serve config file; see deploy/ray/serve.yaml")
    return described


def _free_from(port: int) -> int:
    """This port, or the next one on which nobody listens."""
    while True:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
        port += 1


def _server() -> Any:
    try:
        from convlens.rayserve import server

        return server
    except ImportError as error:
        raise ServerError(f"--on ray needs Ray Serve ({error}): pip install 'convlens[ray]'") from error
