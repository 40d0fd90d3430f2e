"""The record in a server's run folder while it runs: its addresses and its models, for clients on this machine."""

# The standard library alone, because the health check loads this every few seconds.
from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from convlens.errors import ServerError
from convlens.utils.files import atomic_write

RUN_DIR = Path(".convlens") / "server"  # of `convlens serve`, seen from the folder that it was started in
RECORD = "server.json"
_TEXTS = ("rest", "grpc", "metrics", "management", "management_grpc", "version")


@dataclass(frozen=True)
class ServerRecord:
    """Addresses on this machine, the names of the model entries, whether the server asks for a token, and the version
    of ConvLens that started it.

    ``rest``, ``metrics`` and ``management`` are URLs, ``grpc`` and ``management_grpc`` read HOST:PORT.
    """

    rest: str
    grpc: str
    metrics: str
    management: str
    management_grpc: str
    models: tuple[str, ...]
    auth: bool
    version: str

    def write(self, run_dir: Path) -> None:
        with atomic_write(run_dir / RECORD) as draft:
            draft.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def read_record(run_dir: Path) -> ServerRecord:
    """The record of the server that runs in this folder. Raises ServerError where there is none, or none to read."""
    path = run_dir / RECORD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        texts = {name: str(values[name]) for name in _TEXTS}
        return ServerRecord(**texts, models=tuple(map(str, values["models"])), auth=bool(values["auth"]))
    except OSError as error:
        raise ServerError(
            f"no server runs in {run_dir} ({path.name}: {error.strerror}); start one with `convlens serve`, or give "
            "the address of another"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(f"{path} is no server's record ({error!r}); start the server again") from error


def find_record(run_dir: Path = RUN_DIR) -> ServerRecord | None:
    """The record of the server in this folder, None where none runs there. Raises ServerError for a damaged one."""
    return read_record(run_dir) if (run_dir / RECORD).is_file() else None


def remove_record(run_dir: Path) -> None:
    (run_dir / RECORD).unlink(missing_ok=True)
