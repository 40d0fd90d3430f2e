"""Where a command's server is: at the address it was given, or at the one that a run folder records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from convlens.client.run_dir import RUN_DIR, ServerRecord, find_record, read_record
from convlens.errors import RequestError

_REST, _GRPC, _MODEL = "http://127.0.0.1:8080", "127.0.0.1:7070", "convlens"

ServerOption = Annotated[
    str,
    typer.Option(
        help="REST address of the server, or the folder it runs in. Default: the server that `convlens serve` started "
        "here, else http://127.0.0.1:8080."
    ),
]
GrpcAddressOption = Annotated[
    str,
    typer.Option(
        help="HOST:PORT of the server's gRPC inference. Default: that of the server started here, else 127.0.0.1:7070."
    ),
]
ServedModelOption = Annotated[
    str,
    typer.Option(help="Name of the model on the server. Default: convlens, or the only one of a server started here."),
]


@dataclass(frozen=True)
class ServerAddress:
    """``rest``: a URL; ``grpc``: HOST:PORT; ``key_file``: None where the token is looked for in the environment."""

    rest: str
    grpc: str
    model: str
    key_file: Path | None


def find_server(
    url: str, *, grpc: str = "", asks_grpc: bool = False, model: str = "", key_file: Path | None = None
) -> ServerAddress:
    """Where to ask: what was given, and for the rest what the record of a run folder says, else the usual values.

    ``url`` is an address, a server's run folder, or empty for the folder of `convlens serve`. Raises RequestError for
    any other text and for a REST address where gRPC is to be asked, ServerError for a folder where no server runs.
    """
    if asks_grpc and "//" in url and not grpc:
        raise RequestError(f"--url {url} is an address of REST; give that of gRPC by --address", field="url")
    folder, record = _recorded(url)
    rest = (url if "//" in url else "") or (record.rest if record else _REST)
    address = grpc or (record.grpc if record else _GRPC)
    # The record's token is sent to the record's server, not to any other that is named.
    if record is None or not (_same(address, record.grpc) if asks_grpc else _same(rest, record.rest)):
        return ServerAddress(rest, address, model or _MODEL, key_file)
    own_key = folder / "key_file.json" if record.auth else None
    return ServerAddress(rest, address, model or _usual_model(record), key_file or own_key)


def _recorded(url: str) -> tuple[Path, ServerRecord | None]:
    if not url or "//" in url:
        return RUN_DIR, find_record()
    folder = Path(url)
    if not folder.is_dir():
        raise RequestError(
            f"--url {url} is no folder of a running server, and no address like {_REST}; give one of them", field="url"
        )
    return folder, read_record(folder)


def _usual_model(record: ServerRecord) -> str:
    return _MODEL if _MODEL in record.models or not record.models else record.models[0]


def _same(given: str, recorded: str) -> bool:
    return given.rstrip("/").replace("localhost", "127.0.0.1") == recorded
