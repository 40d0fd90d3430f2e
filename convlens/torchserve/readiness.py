"""Waiting until a server's workers have loaded their models; where they will not, its logs say why."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from convlens.errors import ServerError

_POLL_S = 0.2
_PROGRESS_S = 2.0
_LONGEST_LINE = 300
_MOST_LINES = 15

# "2026-01-02T03:04:05,678 [INFO ] W-9000-net_1.0-stdout MODEL_LOG - text"
_PREFIX = re.compile(r"^\d{4}-\d\d-\d\dT[\d:,]+ \[(\w+) *\] \S+ \S+ - ")
_FAILURE = re.compile(r"^(Caused by: |Invalid configuration|Error|Exception in thread|\S+(Exception|Error)(: |$))")
# In the logs of every start, also the good ones.
_HARMLESS = (
    "enable_",
    "Metrics mode",
    "Unrecognized options",
    "sun.misc.Unsafe",
    "java.lang.InterruptedException: null",
)
_WORKER_ENDED = re.compile(r"State change \S+ -> WORKER_STOPPED|Backend worker process died|Load model failed")
_PORT_TAKEN = "Failed to bind to address"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_FOREIGN = ("/site-packages/ts/", "<frozen ", "/importlib/")

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy for the outside knows no loopback


class StartingServer(Protocol):
    """What must be known of a server to wait for it."""

    @property
    def models(self) -> tuple[str, ...]: ...
    @property
    def management_url(self) -> str: ...
    @property
    def logs(self) -> Path: ...

    def headers(self, kind: Any) -> dict[str, str]: ...
    def ended(self) -> int | None: ...


def wait_until_ready(server: StartingServer, *, timeout_s: float, on_step: Callable[[str], None]) -> None:
    """Return when every model has all its workers READY by the management API (``/ping`` says so too early).

    Raises ServerError at once when the server ends, a worker dies or a model is refused, and after ``timeout_s``
    otherwise; the message holds the lines of the logs that say why.
    """
    started = reported = time.monotonic()
    waiting = list(server.models)
    while waiting:
        _require_alive(server)
        # Not asked before all ports are open: models register earlier, so from then on 404 means a refused archive.
        waiting = [name for name in waiting if not (_ports_open(server.logs) and _loaded(server, name))]
        if (now := time.monotonic()) - started > timeout_s:
            raise _failure(server, f"{', '.join(waiting)} not ready after {timeout_s:g} s; give a longer timeout_s")
        if now - reported > _PROGRESS_S:
            reported = now
            on_step(f"waiting for {', '.join(waiting)} to load ({now - started:.0f} s)")
        time.sleep(_POLL_S if waiting else 0)


def _require_alive(server: StartingServer) -> None:
    code = server.ended()
    if code is not None:
        raise _failure(server, f"TorchServe ended with code {code} while starting")
    if _worker_died(server.logs):
        time.sleep(_POLL_S)  # its traceback goes to another file, which may lag
        raise _failure(server, "a worker died while loading its model")


def _loaded(server: StartingServer, name: str) -> bool:
    try:
        request = urllib.request.Request(f"{server.management_url}/models/{name}", headers=server.headers("management"))
        with _DIRECT.open(request, timeout=5) as answer:
            return all(_ready(version) for version in json.load(answer))
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            raise _failure(server, f"TorchServe did not take the archive of {name}") from error
        return False
    except (OSError, ServerError):  # not listening, or no key file, yet
        return False


def _ready(version: dict[str, Any]) -> bool:
    ready = [worker for worker in version["workers"] if worker["status"] == "READY"]
    return len(ready) >= max(1, int(version["minWorkers"]))


def _failure(server: StartingServer, message: str) -> ServerError:
    lines = _failure_lines(server.logs)
    quoted = "".join(f"\n    {line}" for line in lines) or " (nothing telling in its logs)"
    return ServerError(f"{message}; the whole log is in {server.logs}{':' if lines else ''}{quoted}")


# --- what the logs say ------------------------------------------------------------------------------------------------


def _ports_open(logs: Path) -> bool:
    return "Model server started." in _lines(logs / "console.log")


def _worker_died(logs: Path) -> bool:
    """Whether a worker ended by itself. In a start none should, and TorchServe would retry for five minutes.

    Workers of a server that found its port taken do not count: it is about to end and takes them along.
    """
    lines = list(_lines(logs / "ts_log.log"))
    return any(_WORKER_ENDED.search(line) for line in lines) and not any(_PORT_TAKEN in line for line in lines)


def _failure_lines(logs: Path) -> list[str]:
    """The last Python traceback of a worker, else what the server warned of or died from."""
    lines = _last_traceback(logs / "model_log.log") or _complaints(logs)
    return [line[:_LONGEST_LINE] for line in lines[-_MOST_LINES:]]


def _last_traceback(path: Path) -> list[str]:
    """From "Traceback" to the exception's own line, with those it followed from: TorchServe hides a handler's
    ImportError behind one of its own. Worker log lines come as INFO, whatever they are.
    """
    block: list[str] = []
    for line in (_PREFIX.sub("", line) for line in _lines(path)):
        if line.startswith("Traceback") and not (block and block[-1].startswith(_CHAINED)):
            block = [line]
        elif block and (line.startswith((" ", "Traceback", *_CHAINED)) or block[-1].startswith((" ", "Traceback"))):
            block.append(line)
    return list(_without_foreign_frames(block))


def _without_foreign_frames(block: Iterable[str]) -> Iterator[str]:
    """Without TorchServe's and importlib's frames (a "File" line and the code below it), the same in each failure."""
    foreign = False
    for line in block:
        if not line.startswith("    "):
            foreign = line.startswith("  File") and any(path in line for path in _FOREIGN)
        if line and not foreign:
            yield line


def _complaints(logs: Path) -> list[str]:
    files = ("model_log.log", "console.log", "ts_log.log")
    lines = [line for name in files for line in _lines(logs / name) if _is_complaint(line)]
    return list(dict.fromkeys(_PREFIX.sub("", line) for line in lines))


def _is_complaint(line: str) -> bool:
    if any(text in line for text in _HARMLESS):
        return False
    prefix = _PREFIX.match(line)
    return prefix.group(1) in ("WARN", "ERROR") if prefix else bool(_FAILURE.match(line))


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from (line.rstrip("\n") for line in file)
