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
    while quiet < _QUIET:
        left_s = until - time.monotonic()
        if left_s < 0 or server.ended() is not None:
            return server.ended() is not None
        quiet = quiet + 1 if _idle(server, timeout_s=max(_EVERY_S, left_s)) else 0
    return True


def _idle(server: Server, *, timeout_s: float) -> bool:
    """Whether neither the queues nor the workers have anything; not where the server does not say, being too busy."""
    try:
        entries = _described(server, timeout_s)
    except httpx.HTTPError:
        entries = None
    workers = _processes([int(worker["pid"]) for one in entries or () for worker in one["workers"]])
    before = {worker.pid: _seconds(worker) for worker in workers}
    time.sleep(_EVERY_S)
    if entries is None or any(_seconds(worker) - before[worker.pid] > _BUSY * _EVERY_S for worker in workers):
        return False
    return not any(int(one["jobQueueStatus"]["pendingRequests"]) for one in entries)


def _described(server: Server, timeout_s: float) -> list[dict[str, Any]]:
    headers = server.headers("management")
    with httpx.Client(trust_env=False, timeout=min(5.0, timeout_s), headers=headers) as client:
        answers = [client.get(f"{server.management_url}/models/{name}") for name in server.models]
    return [one for answer in answers for one in answer.raise_for_status().json()]


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
