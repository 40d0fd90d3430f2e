"""Waiting until a server has answered what it was asked, because ending it cuts off what is in flight.

One server in the foreground, as containers run it: ``python -m convlens.torchserve.container NAME.mar``.

Its ports are those of config.properties, its output is the server's. SIGTERM waits for requests in flight before the
server ends. Needs no torch, so that beside the workers it takes next to no memory.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
import os
import queue
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import psutil

from convlens.errors import ConvLensError, ServerError
from convlens.torchserve import health, server, server_config
from convlens.torchserve.archive import entries
from convlens.torchserve.launcher import Settings
from convlens.torchserve.server import Server

_EVERY_S = 0.2
_QUIET = 4  # looks in a row that must find nothing: a request just taken from the queue is in neither number
_BUSY = 0.25  # of one core: a worker that computes takes a whole one at least, a waiting one none


def wait_until_idle(server: Server, *, within_s: float) -> bool:
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
    before = {worker.pid: _cpu_seconds(worker) for worker in workers}
    time.sleep(_EVERY_S)
    if entries is None or any(_cpu_seconds(worker) - before[worker.pid] > _BUSY * _EVERY_S for worker in workers):
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


def _cpu_seconds(process: psutil.Process) -> float:
    """Of processor time; of a worker that is gone as many as it ever had."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


_LOOK_EVERY_S = 1.0
_LONGEST_S = 86400


@dataclass(frozen=True)
class Plan:
    """What to serve, and how long to wait at the end: ``linger_s`` for whoever still sends, ``drain_s`` for answers.

    ``base``: the configuration to start from, by default the committed one; its ports are the server's.
    """

    archives: tuple[Path, ...]
    run_dir: Path
    host: str = server_config.LOOPBACK
    linger_s: float = 0.0
    drain_s: float = 30.0
    auth: bool = True
    base: Path | None = None
    startup_s: float = 300.0


def serve(plan: Plan, *, stop: queue.SimpleQueue[int]) -> int:
    """Serve until something is put into ``stop``; 0 then, and ServerError where the server ends by itself."""
    archives = {name: path for archive in plan.archives for name, path in entries(archive).items()}
    with server.running(
        archives=archives,
        run_dir=plan.run_dir,
        ports=server_config.configured_ports(plan.base or server_config.committed()),
        auth=plan.auth,
        timeout_s=plan.startup_s,
        settings=Settings(base=plan.base, host=plan.host, follow=True),
        probe=_probe,
        on_step=_say,
    ) as live:
        _say(f"serving {', '.join(live.models)} on {plan.host}:{live.ports.inference}")
        while not asked_within(stop, _LOOK_EVERY_S):
            if live.ended() is not None:
                raise ServerError(f"TorchServe ended by itself with code {live.ended()}; its logs are in {live.logs}")
        stop_after_answers(live, linger_s=plan.linger_s, drain_s=plan.drain_s)
    _say("stopped")
    return 0


def stop_after_answers(live: Server, *, linger_s: float, drain_s: float) -> None:
    """Wait for whoever has not heard yet that this server goes away, then for what is in flight."""
    _say(f"asked to stop: serving on for {linger_s:g} s, then waiting up to {drain_s:g} s for requests in flight")
    time.sleep(linger_s)
    if not wait_until_idle(live, within_s=drain_s):
        _say(f"requests are still in flight after {drain_s:g} s; they are cut off")


def heard(*signals: int) -> queue.SimpleQueue[int]:
    """Where these signals go from now on instead of ending this process; only its main thread may call this."""
    # No threading.Event: where a signal comes while this very thread holds the event's lock, set() waits for ever.
    # A SimpleQueue may be put into from anywhere.
    came: queue.SimpleQueue[int] = queue.SimpleQueue()

    def put(number: int, _: FrameType | None) -> None:
        came.put(number)

    for each in signals:
        signal.signal(each, put)
    return came


def asked_within(stop: queue.SimpleQueue[int], seconds: float) -> bool:
    """Whether a signal came, waiting for one that long."""
    try:
        stop.get(timeout=seconds)
    except queue.Empty:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 and one line on standard error for an error of ours."""
    plan = _plan(arguments)
    try:
        return serve(plan, stop=heard(signal.SIGTERM, signal.SIGINT))
    except ConvLensError as error:
        print(f"error: {error.message}", file=sys.stderr)  # noqa: T201 - it is a command
        return 2


def _plan(arguments: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m convlens.torchserve.container", description=__doc__)
    parser.add_argument("archives", nargs="+", type=Path, help="archives to serve, each under its own name")
    parser.add_argument("--run-dir", type=Path, default=Path(os.environ.get("CONVLENS_RUN_DIR", ".convlens/server")))
    parser.add_argument("--config", type=Path, help="config.properties to start from; default: the committed one")
    host = os.environ.get("CONVLENS_HOST", server_config.LOOPBACK)
    parser.add_argument("--host", default=host, help="where inference and metrics listen; default: $CONVLENS_HOST")
    linger, drained = os.environ.get("CONVLENS_LINGER_S", "0"), os.environ.get("CONVLENS_DRAIN_S", "30")
    parser.add_argument("--linger", type=_seconds_argument, default=linger, help="seconds to serve on after SIGTERM")
    parser.add_argument(
        "--drain", type=_seconds_argument, default=drained, help="seconds to wait for requests in flight"
    )
    given = parser.parse_args(arguments)
    try:
        ipaddress.IPv4Address(given.host)
    except ValueError:
        parser.error(f"--host {given.host!r} is no IPv4 address; use 127.0.0.1, or 0.0.0.0 for every network")
    return Plan(tuple(given.archives), given.run_dir, given.host, given.linger, given.drain, base=given.config)


def _seconds_argument(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no time of 0 to {_LONGEST_S} seconds")
    return seconds


def _probe(live: Server) -> None:
    """A server that says it is ready has not yet shown that it can answer."""
    health.probe_all(live.inference_url, live.models, key_file=live.key_file if live.auth else None, timeout_s=60.0)


def _say(message: str) -> None:
    print(message, flush=True)  # noqa: T201 - it is a command


if __name__ == "__main__":
    sys.exit(main())
