"""``convlens serve``: TorchServe on this machine until Ctrl-C, with commands to try; and ``convlens token``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from convlens.cli.console import print_message, print_result, spinner
from convlens.cli.demo import demo_archive, require_inference
from convlens.cli.options import DEFAULT_MODEL, ModelOption, StoreOption
from convlens.cli.serve_ray import serve_on_ray
from convlens.client.run_dir import RUN_DIR
from convlens.errors import ServerError
from convlens.models import load
from convlens.torchserve import server, server_config
from convlens.torchserve.archive import entries
from convlens.torchserve.server import Server
from convlens.torchserve.server_config import Ports
from convlens.utils.files import require_writable

_DOORS = {
    "inference": "REST",
    "grpc_inference": "gRPC",
    "metrics": "metrics",
    "management": "management",
    "grpc_management": "management by gRPC",
}


def serve(
    archive: Annotated[
        Path | None, typer.Argument(help="Archive to serve. Default: the demo's, built if necessary.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    port: Annotated[
        int | None, typer.Option(help="Port of REST on 127.0.0.1. Default: 8080, or the next free one.")
    ] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port of gRPC. Default: 7070, or the next free one.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the metrics. Default: 8082, or the next free one.")
    ] = None,
    management_port: Annotated[
        int | None, typer.Option(help="Port of TorchServe's management. Default: 8081, or the next free one.")
    ] = None,
    management_grpc_port: Annotated[
        int | None, typer.Option(help="Port of the management by gRPC. Default: 7071, or the next free one.")
    ] = None,
    auth: Annotated[bool, typer.Option(help="Require a token from every client.")] = True,
    store: StoreOption = Path("model_store"),
    on: Annotated[Literal["torchserve", "ray"], typer.Option(help="Server: TorchServe, or Ray Serve.")] = "torchserve",
    address: Annotated[
        str, typer.Option(help="Ray cluster to serve on, HOST:PORT. Default: one of this machine alone.")
    ] = "",
    config: Annotated[
        Path | None, typer.Option(help="Serve config file for Ray, in place of an archive and ports.")
    ] = None,
) -> None:
    """Serve an archive on 127.0.0.1 until Ctrl-C; print the ports, and commands to try."""
    if on == "torchserve" and (address or config):
        raise ServerError("--address and --config are for Ray: add --on ray")
    if on == "ray" and (metrics_port or management_port or management_grpc_port):
        raise ServerError(
            "Ray Serve has no ports for metrics and management: metrics are at /metrics of --port, and `serve status` "
            "and a new config file manage it"
        )
    require_writable(RUN_DIR)
    if archive is None and config is None:
        require_writable(store)
    named = {
        "inference": port,
        "grpc_inference": grpc_port,
        "metrics": metrics_port,
        "management": management_port,
        "grpc_management": management_grpc_port,
    }
    ports = server_config.usual_ports(**named)  # before the archive is built, for an early error
    if on == "ray":
        path = archive or (None if config else _default_archive(model, store))
        serve_on_ray(
            path,
            run_dir=RUN_DIR,
            port=ports.inference,
            grpc_port=ports.grpc_inference,
            auth=auth,
            address=address,
            config=config,
        )
        return
    path = archive or _default_archive(model, store)
    ports = server_config.usual_ports(**named)
    for line in moved_ports(ports, named):
        print_message(line)
    with server.running(
        archives=entries(path, name=path.stem),
        run_dir=RUN_DIR,
        ports=ports,
        auth=auth,
        probe=require_inference,
        on_step=print_message,
    ) as live:
        print_result(commands_to_try(live))
        try:
            while live.ended() is None:
                time.sleep(1.0)
            raise ServerError(f"TorchServe ended by itself with code {live.ended()}; its logs are in {live.logs}")
        except KeyboardInterrupt:
            print_message("stopping")


def token() -> None:
    """Print the token of the server that `convlens serve` started, for curl commands."""
    try:
        key = json.loads((RUN_DIR / "key_file.json").read_text(encoding="utf-8"))["inference"]["key"]
    except (OSError, ValueError, KeyError) as error:
        raise ServerError("no server with a token runs here; start one with `convlens serve`") from error
    print_result(key)


def moved_ports(ports: Ports, named: Mapping[str, int | None]) -> Iterator[str]:
    """A line for each port that is neither named nor the usual one, because somebody else listens there."""
    usual = asdict(Ports())
    for name, port in asdict(ports).items():
        if named.get(name) is None and port != usual[name]:
            yield f"port {usual[name]} is not free; {_DOORS[name]} is on {port}"


def commands_to_try(live: Server) -> str:
    """The server's addresses, and shell commands that ask it for predictions and explanations."""
    name, url = live.models[0], live.inference_url
    header = ' -H "Authorization: Bearer $TOKEN"' if live.auth else ""
    methods = """'params={"methods":[{"method":"occlusion","options":{"window":48}}]}'"""
    record = live.record
    lines = [
        f"serving {', '.join(live.models)}; stop with Ctrl-C",
        "",
        f"  REST        {record.rest}",
        f"  gRPC        {record.grpc}",
        f"  metrics     {record.metrics}",
        f"  management  {record.management}, by gRPC {record.management_grpc}",
        "",
        "In another terminal, in this folder:",
        "",
        *(["  TOKEN=$(.venv/bin/convlens token)"] if live.auth else []),
        f"  curl -T cat.jpg{header} {url}/predictions/{name}",
        f"  curl -T cat.jpg{header} {url}/explanations/{name}",
        f"  curl -T cat.jpg{header} {url}/explanations/{name}/1.0/saliency",
        f"  curl -F data=@cat.jpg -F {methods}{header} {url}/predictions/{name}",
        "  .venv/bin/convlens query cat.jpg --methods saliency -o answers",
        "  .venv/bin/convlens query cat.jpg --grpc --methods saliency -o answers",
    ]
    return "\n".join(lines)


def _default_archive(model: str, store: Path) -> Path:
    with spinner(f"loading {model}"):
        classifier = load(model, device="cpu")
    return demo_archive(classifier, store)
