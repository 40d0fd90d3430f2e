"""``convlens probe``: whether a server answers, for health checks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convlens.serving.probe import MODEL, TIMEOUT_S, URL, ended


def probe(
    url: Annotated[str, typer.Option(help="Inference address of the server.")] = URL,
    model: Annotated[list[str] | None, typer.Option(help=f"Model entry; may be repeated; default: {MODEL}.")] = None,
    grpc: Annotated[str, typer.Option(help="Ask this HOST:PORT over gRPC instead.")] = "",
    key_file: Annotated[
        Path | None, typer.Option(help="File with the token; default: $CONVLENS_TOKEN, then one at hand.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for all entries together.")] = TIMEOUT_S,
) -> None:
    """Ask every model entry for a tiny inference: exit code 0 where each answers, else 1 and a line why."""
    raise typer.Exit(ended(url, model or [MODEL], grpc=grpc, key_file=key_file, timeout_s=timeout))
