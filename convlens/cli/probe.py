"""``convlens probe``: a health check. In a file of its own because it runs every few seconds and must start at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convlens.client.run_dir import find_record
from convlens.torchserve.health import MODEL, TIMEOUT_S, URL, exit_code


def probe(
    url: Annotated[
        str,
        typer.Option(
            help="REST address of the server. Default: the server that `convlens serve` started here, else "
            "http://127.0.0.1:8080."
        ),
    ] = "",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model entry to check; may be repeated. Default: those of the server started here, else convlens."
        ),
    ] = None,
    grpc: Annotated[str, typer.Option(help="Use gRPC at this HOST:PORT instead of REST.")] = "",
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token. Default: $CONVLENS_TOKEN, then key_file.json of a server started here."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Time limit in seconds for all entries together.")] = TIMEOUT_S,
) -> None:
    """Check that a server answers a tiny inference: exit code 0 if every model entry answers, else 1 and the reason."""
    record = None if url or grpc else find_record()
    usual_url, usual_models = (record.rest, record.models) if record else (URL, [MODEL])
    raise typer.Exit(
        exit_code(url or usual_url, model or usual_models, grpc=grpc, key_file=key_file, timeout_s=timeout)
    )
