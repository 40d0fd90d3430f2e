"""Waiting until a server's workers have loaded their models, or telling why they will not."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from convlens.errors import ServerError
from convlens.serving import logs

_EVERY_S = 0.2
_TELL_EVERY_S = 2.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy for the outside knows no loopback


class Starting(Protocol):
    """What must be known of a server to wait for it."""

    @property
    def models(self) -> tuple[str, ...]: ...
    @property
    def management_url(self) -> str: ...
    @property
    def logs(self) -> Path: ...

    def headers(self, kind: Any) -> dict[str, str]: ...
    def ended(self) -> int | None: ...


def wait_until_ready(server: Starting, *, timeout_s: float, on_step: Callable[[str], None]) -> None:
    """Return when every model has all its workers READY by the management API (``/ping`` says so too early).

    Raises ServerError at once when the server ends, a worker dies or a model is refused, and after ``timeout_s``
    otherwise; the message holds the telling lines of the logs.
    """
    begun = told = time.monotonic()
    waiting = list(server.models)
    while waiting:
        _require_alive(server)
        waiting = [name for name in waiting if not (logs.started(server.logs) and _loaded(server, name))]
        if (now := time.monotonic()) - begun > timeout_s:
            raise _failure(server, f"{', '.join(waiting)} not ready after {timeout_s:g} s; give a longer timeout_s")
        if now - told > _TELL_EVERY_S:
            told = now
            on_step(f"waiting for {', '.join(waiting)} to load ({now - begun:.0f} s)")
        time.sleep(_EVERY_S if waiting else 0)


def _require_alive(server: Starting) -> None:
    code = server.ended()
    if code is not None:
        raise _failure(server, f"TorchServe ended with code {code} while starting")
    if logs.worker_died(server.logs):
        time.sleep(_EVERY_S)  # its traceback goes to another file, which may lag
        raise _failure(server, "a worker died while loading its model")


def _loaded(server: Starting, name: str) -> bool:
    try:
        request = urllib.request.Request(f"{server.management_url}/models/{name}", headers=server.headers("management"))
        with _DIRECT.open(request, timeout=5) as answer:
            return _all_ready(json.load(answer))
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:  # models register before the port opens: this one was refused
            raise _failure(server, f"TorchServe did not take the archive of {name}") from error
        return False
    except (OSError, ServerError):  # not listening, or no key file, yet
        return False


def _all_ready(versions: list[dict[str, Any]]) -> bool:
    return all(_ready(version) for version in versions)


def _ready(version: dict[str, Any]) -> bool:
    ready = [worker for worker in version["workers"] if worker["status"] == "READY"]
    return len(ready) >= max(1, int(version["minWorkers"]))


def _failure(server: Starting, what: str) -> ServerError:
    lines = logs.trouble(server.logs)
    told = "".join(f"\n    {line}" for line in lines) or " (nothing telling in its logs)"
    return ServerError(f"{what}; the whole log is in {server.logs}{':' if lines else ''}{told}")
