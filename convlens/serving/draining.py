"""Waiting until a server has answered what it was asked, because ending it cuts off what is in flight."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import httpx
import psutil

from convlens.serving.server import Server

_EVERY_S = 0.2
_QUIET = 4  # looks in a row that must find nothing: a request just taken from the queue is in neither number
_BUSY = 0.25  # of one core: a worker that computes takes a whole one at least, a waiting one none


def drain(server: Server, *, within_s: float) -> bool:
    """Return when no request waits and no worker computes, at the latest after ``within_s``; whether it came to that.

    New requests are still answered: whoever sends them must be told first, as Kubernetes tells its proxies. TorchServe
    counts what waits in its queues, but not what its workers have in hand; of that their processor time tells.
    """
    until, quiet = time.monotonic() + within_s, 0
    workers = _processes(_workers(server))
    while quiet < _QUIET:
        if time.monotonic() > until or server.ended() is not None:
            return server.ended() is not None
        before = {worker.pid: _seconds(worker) for worker in workers}
        time.sleep(_EVERY_S)
        busy = any(_seconds(worker) - before[worker.pid] > _BUSY * _EVERY_S for worker in workers)
        quiet = 0 if busy or _any_waiting(server) else quiet + 1
    return True


def _described(server: Server) -> list[dict[str, Any]]:
    headers = server.headers("management")
    with httpx.Client(trust_env=False, timeout=5, headers=headers) as client:
        answers = [client.get(f"{server.management_url}/models/{name}") for name in server.models]
    return [one for answer in answers for one in answer.raise_for_status().json()]


def _workers(server: Server) -> list[int]:
    return [int(worker["pid"]) for one in _described(server) for worker in one["workers"]]


def _any_waiting(server: Server) -> bool:
    """Whether requests wait in the queue of any entry; also where a server does not say, being too busy to."""
    try:
        return any(int(one["jobQueueStatus"]["pendingRequests"]) for one in _described(server))
    except httpx.HTTPError:
        return True


def _processes(pids: list[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with suppress(psutil.Error):
            found.append(psutil.Process(pid))
    return found


def _seconds(process: psutil.Process) -> float:
    """Of processor time; of a worker that is gone as many as it ever had."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
