"""The small network behind TorchServe or Ray Serve, for tests that both must pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from live_server import strict
from ray_service import Started
from small_server import SMALL, worker_of

from convlens.torchserve.server import Server


@dataclass(frozen=True)
class Either:
    """``workers`` lists the processes that compute; ``logs`` all files that the server wrote lines to."""

    name: str
    server: Any
    workers: Callable[[], list[psutil.Process]]
    logs: Callable[[], list[Path]]

    def ask(self, params: Any, picture: bytes, *, accept: str = "*/*") -> httpx.Response:
        """By a form, as ``curl -F data=@… -F params=…`` sends it."""
        form = {"data": ("a", picture), "params": (None, json.dumps(params))}
        headers = {**self.server.headers("inference"), "Accept": accept}
        url = f"{self.server.inference_url}/predictions/{SMALL}"
        return httpx.post(url, headers=headers, files=form, timeout=60, trust_env=False)

    def explain(self, params: Any, picture: bytes, *, status: int = 200) -> Any:
        """The body of the answer, which must be strict JSON and have this status."""
        got = self.ask(params, picture)
        assert (got.status_code, got.headers["content-type"]) == (status, "application/json"), got.text[:500]
        return strict(got.content)

    def together(self, *asked: tuple[Any, bytes]) -> list[httpx.Response]:
        """Parameters and pictures, all at once, so that they can share a batch."""
        with ThreadPoolExecutor(len(asked)) as pool:
            return list(pool.map(lambda one: self.ask(*one), asked))

    def pids(self) -> set[int]:
        return {worker.pid for worker in self.workers()}


def torchserve(server: Server) -> Either:
    return Either("torchserve", server, lambda: [worker_of(server, SMALL)], lambda: list(server.logs.iterdir()))


def ray(started: Started) -> Either:
    return Either("ray", started.server, lambda: replicas(started), lambda: log_files(started))


def replicas(started: Started, role: str = "") -> list[psutil.Process]:
    """Of all deployments of the network, or of one role."""
    family = psutil.Process(started.process.pid).children(recursive=True)
    return [process for process in family if f":{SMALL}-{role}" in _title(process)]


def log_files(started: Started) -> list[Path]:
    temp = started.output.parent / "tmp"
    return [started.output, *(path for path in temp.glob("cl-ray-*/session_*/logs/**/*") if path.is_file())]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""
