"""``convlens serve``: TorchServe on this machine until Ctrl-C, with commands to try; and ``convlens token``."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from convlens.cli.console import print_message, print_result, spinner
from convlens.cli.demo import demo_archive, require_inference
from convlens.cli.options import DEFAULT_MODEL, ModelOption, StoreOption
from convlens.cli.serve_ray import serve_on_ray
from convlens.errors import ServerError
from convlens.models import load
from convlens.torchserve import server, server_config
from convlens.torchserve.archive import entries
from convlens.torchserve.server import Server

RUN_DIR = Path(".convlens") / "server"


def serve(
    archive: Annotated[
        Path | None, typer.Argument(help="Archive to serve. Default: the demo's, built if necessary.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    port: Annotated[int, typer.Option(help="Inference port on 127.0.0.1; the other ports are any free ones.")] = 8080,
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
    """Serve an archive on 127.0.0.1 until Ctrl-C, and print curl commands to try."""
    if on == "torchserve" and (address or config):
        raise ServerError("--address and --config are for Ray: add --on ray")
    path = archive or (None if config else _default_archive(model, store))
    if on == "ray":
        serve_on_ray(path, run_dir=RUN_DIR, port=port, auth=auth, address=address, config=config)
        return
    assert path is not None
    ports = replace(server_config.free_ports(), inference=port)
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


def commands_to_try(live: Server) -> str:
    """Shell commands that ask the server for predictions and explanations."""
    name, url = live.models[0], live.inference_url
    header = ' -H "Authorization: Bearer $TOKEN"' if live.auth else ""
    methods = """'params={"methods":[{"method":"occlusion","options":{"window":48}}]}'"""
    lines = [
        "serving; stop with Ctrl-C. In another terminal, in this folder:",
        "",
        *(["  TOKEN=$(.venv/bin/convlens token)"] if live.auth else []),
        f"  curl -T cat.jpg{header} {url}/predictions/{name}",
        f"  curl -T cat.jpg{header} {url}/explanations/{name}",
        f"  curl -T cat.jpg{header} {url}/explanations/{name}/1.0/saliency",
        f"  curl -F data=@cat.jpg -F {methods}{header} {url}/predictions/{name}",
    ]
    return "\n".join(lines)


def _default_archive(model: str, store: Path) -> Path:
    with spinner(f"loading {model}"):
        classifier = load(model, device="cpu")
    return demo_archive(classifier, store)
