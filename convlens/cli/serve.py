"""``convlens serve``: TorchServe on this machine until Ctrl-C, with the lines to try it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from convlens.cli.archive_cache import current_archive, graphs_for
from convlens.cli.console import out, step
from convlens.cli.demo import NAME, gallery_for, probe, say
from convlens.cli.options import MODEL
from convlens.errors import ServerError
from convlens.models import load
from convlens.torchserve import server, server_config
from convlens.torchserve.archive import entries
from convlens.torchserve.server import Server

RUN_DIR = Path(".convlens") / "server"


def serve(
    archive: Annotated[
        Path | None, typer.Argument(help="Archive to serve; default: the demo's, built if need be.")
    ] = None,
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    port: Annotated[int, typer.Option(help="Inference port on 127.0.0.1; the other ports are free ones.")] = 8080,
    auth: Annotated[bool, typer.Option(help="Ask every client for a token.")] = True,
    store: Annotated[Path, typer.Option(help="Folder of archives.")] = Path("model_store"),
) -> None:
    """Serve an archive on 127.0.0.1 until Ctrl-C, and print curl lines to try."""
    path = archive or _default_archive(model, store)
    ports = replace(server_config.free_ports(), inference=port)
    with server.running(
        archives=entries(path, name=path.stem), run_dir=RUN_DIR, ports=ports, auth=auth, probe=probe, on_step=say
    ) as live:
        out.print(lines_to_try(live), markup=False, highlight=False, soft_wrap=True)
        try:
            while live.ended() is None:
                time.sleep(1.0)
            raise ServerError(f"TorchServe ended by itself with code {live.ended()}; its logs are in {live.logs}")
        except KeyboardInterrupt:
            say("stopping")


def token() -> None:
    """Print the token of the server that `convlens serve` started, for use in curl lines."""
    try:
        key = json.loads((RUN_DIR / "key_file.json").read_text(encoding="utf-8"))["inference"]["key"]
    except (OSError, ValueError, KeyError) as error:
        raise ServerError("no server with a token runs here; start one by `convlens serve`") from error
    out.print(key, markup=False, highlight=False, soft_wrap=True)


def lines_to_try(live: Server) -> str:
    """Shell lines that ask the server for predictions and explanations."""
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
    with step(f"loading {model}"):
        classifier = load(model, device="cpu")
    return current_archive(
        classifier, name=NAME, store=store, gallery=gallery_for(classifier), graphs=graphs_for(classifier, "torch")
    )
