"""One server in the foreground, as containers run it: ``python -m convlens.torchserve.container NAME.mar``.

Its ports are those of config.properties, its output is the server's. Ending TorchServe cuts off what is in flight, so
SIGTERM first waits until the server has answered. Needs no torch, so that beside the workers it takes next to no
memory.
"""

from __future__ import annotations

import argparse
import importlib.util
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
from convlens.torchserve.archive import entries, holds_network
from convlens.torchserve.launcher import ServerSettings
from convlens.torchserve.server import Server

_LOOK_EVERY_S = 1.0
_LONGEST_S = 86400

_IDLE_LOOK_S = 0.2
_IDLE_LOOKS = 4  # in a row: a request just taken from the queue is in neither of the two numbers that a look reads
_BUSY = 0.25  # of one core: a worker that computes takes a whole one at least, a waiting one none


@dataclass(frozen=True)
class ContainerOptions:
    """What to serve, and how long to go on after SIGTERM: ``linger_s`` for clients that do not know of it yet, then at
    most ``drain_s`` for requests in flight.

    ``base``: the properties file to start from, by default the committed one; its ports are the server's.
    """

    archives: tuple[Path, ...]
    run_dir: Path
    host: str = server_config.LOOPBACK
    linger_s: float = 0.0
    drain_s: float = 30.0
    auth: bool = True
    base: Path | None = None
    startup_s: float = 300.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 and one line on standard error for an error of ours."""
    options = _parse(arguments)
    try:
        return serve(options, stop=signal_queue(signal.SIGTERM, signal.SIGINT))
    except ConvLensError as error:
        print(f"error: {error.message}", file=sys.stderr)  # noqa: T201 - it is a command
        return 2


def serve(options: ContainerOptions, *, stop: queue.SimpleQueue[int]) -> int:
    """Serve until something is put into ``stop``; 0 then, and ServerError where the server ends by itself."""
    archives = {name: path for archive in options.archives for name, path in entries(archive).items()}
    for archive in options.archives:
        _require_packages(archive)
    with server.running(
        archives=archives,
        run_dir=options.run_dir,
        ports=server_config.configured_ports(options.base or server_config.committed()),
        auth=options.auth,
        timeout_s=options.startup_s,
        settings=ServerSettings(base=options.base, host=options.host, follow=True),
        probe=_probe,
        on_step=_say,
    ) as live:
        _say(f"serving {', '.join(live.models)} on {options.host}:{live.ports.inference}")
        while not signalled_within(stop, _LOOK_EVERY_S):
            if live.ended() is not None:
                raise ServerError(f"TorchServe ended by itself with code {live.ended()}; its logs are in {live.logs}")
        finish_requests(live, linger_s=options.linger_s, drain_s=options.drain_s)
    _say("stopped")
    return 0


def _require_packages(archive: Path) -> None:
    """ServerError for a network where no network can be built, as in the image of exported graphs."""
    missing = [name for name in ("timm", "torchvision") if importlib.util.find_spec(name) is None]
    if missing and holds_network(archive):
        raise ServerError(
            f"{archive} holds a network, and {' and '.join(missing)} are not installed here: only exported graphs can "
            "be served; build the archive with `convlens archive --runtime onnx`, or the image with VARIANT=cuda or cpu"
        )


def _parse(arguments: Sequence[str] | None) -> ContainerOptions:
    parser = argparse.ArgumentParser(prog="python -m convlens.torchserve.container", description=__doc__)
    parser.add_argument("archives", nargs="+", type=Path, help="archives to serve, each under its own name")
    parser.add_argument("--run-dir", type=Path, default=Path(os.environ.get("CONVLENS_RUN_DIR", ".convlens/server")))
    parser.add_argument("--config", type=Path, help="config.properties to start from; default: the committed one")
    host = os.environ.get("CONVLENS_HOST", server_config.LOOPBACK)
    parser.add_argument("--host", default=host, help="where inference and metrics listen; default: $CONVLENS_HOST")
    linger, drain = os.environ.get("CONVLENS_LINGER_S", "0"), os.environ.get("CONVLENS_DRAIN_S", "30")
    parser.add_argument("--linger", type=_seconds, default=linger, help="seconds to serve on after SIGTERM")
    parser.add_argument("--drain", type=_seconds, default=drain, help="seconds to wait for requests in flight")
    values = parser.parse_args(arguments)
    try:
        ipaddress.IPv4Address(values.host)
    except ValueError:
        parser.error(f"--host {values.host!r} is no IPv4 address; use 127.0.0.1, or 0.0.0.0 for every network")
    return ContainerOptions(
        tuple(values.archives), values.run_dir, values.host, values.linger, values.drain, base=values.config
    )


def _seconds(text: str) -> float:
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


# --- signals ----------------------------------------------------------------------------------------------------------


def signal_queue(*signals: int) -> queue.SimpleQueue[int]:
    """Where these signals go from now on instead of ending this process; only its main thread may call this."""
    # No threading.Event: where a signal comes while this very thread holds the event's lock, set() waits for ever.
    # A SimpleQueue may be put into from anywhere.
    received: queue.SimpleQueue[int] = queue.SimpleQueue()

    def put(number: int, _: FrameType | None) -> None:
        received.put(number)

    for each in signals:
        signal.signal(each, put)
    return received


def signalled_within(received: queue.SimpleQueue[int], seconds: float) -> bool:
    """Whether a signal came, waiting for one that long."""
    try:
        received.get(timeout=seconds)
    except queue.Empty:
        return False
    return True


# --- draining ---------------------------------------------------------------------------------------------------------


def finish_requests(live: Server, *, linger_s: float, drain_s: float) -> None:
    """Serve on for clients that do not know yet that this server goes away, then wait for requests in flight."""
    _say(f"asked to stop: serving on for {linger_s:g} s, then waiting up to {drain_s:g} s for requests in flight")
    time.sleep(linger_s)
    if not wait_until_idle(live, within_s=drain_s):
        _say(f"requests are still in flight after {drain_s:g} s; they are cut off")


def wait_until_idle(server: Server, *, within_s: float) -> bool:
    """Return when no request waits and no worker computes, at the latest after ``within_s``; whether it came to that.

    New requests are still answered: whoever sends them must be told first, as Kubernetes tells its proxies.
    """
    until, idle_looks = time.monotonic() + within_s, 0
    while idle_looks < _IDLE_LOOKS:
        left_s = until - time.monotonic()
        if left_s < 0 or server.ended() is not None:
            return server.ended() is not None
        idle_looks = idle_looks + 1 if _is_idle(server, timeout_s=max(_IDLE_LOOK_S, left_s)) else 0
    return True


def _is_idle(server: Server, *, timeout_s: float) -> bool:
    """Whether neither the queues nor the workers have anything; not where the server is too busy to say."""
    # TorchServe counts what waits in its queues, but not what its workers have in hand: their processor time tells, and
    # their threads, where others take the cores that they want.
    try:
        models = _model_states(server, timeout_s)
    except httpx.HTTPError:
        models = None
    workers = _processes([int(worker["pid"]) for model in models or () for worker in model["workers"]])
    before = {worker.pid: _cpu_seconds(worker) for worker in workers}
    time.sleep(_IDLE_LOOK_S)
    if models is None or any(_cpu_seconds(worker) - before[worker.pid] > _BUSY * _IDLE_LOOK_S for worker in workers):
        return False
    if any(map(_wants_a_core, workers)):
        return False
    return not any(int(model["jobQueueStatus"]["pendingRequests"]) for model in models)


def _model_states(server: Server, timeout_s: float) -> list[dict[str, Any]]:
    headers = server.headers("management")
    with httpx.Client(trust_env=False, timeout=min(5.0, timeout_s), headers=headers) as client:
        answers = [client.get(f"{server.management_url}/models/{name}") for name in server.models]
    return [state for answer in answers for state in answer.raise_for_status().json()]


def _processes(pids: list[int]) -> list[psutil.Process]:
    processes = []
    for pid in pids:
        with suppress(psutil.Error):
            processes.append(psutil.Process(pid))
    return processes


def _cpu_seconds(process: psutil.Process) -> float:
    """Of processor time; 0 for a worker that is gone."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _wants_a_core(process: psutil.Process) -> bool:
    """Whether one of its threads runs or could run, waits for the disk, or is stopped; not for one that is gone."""
    try:
        if not psutil.LINUX:
            return process.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP, psutil.STATUS_STOPPED)
        stats = [path.read_text(encoding="utf-8") for path in Path(f"/proc/{process.pid}/task").glob("*/stat")]
    except (OSError, psutil.Error):  # a thread that ends meanwhile: the next look will tell
        return process.is_running()
    # "PID (name) state …" (proc(5)); a name may hold brackets of its own.
    return any(stat.rpartition(")")[2].split()[0] in "RDTt" for stat in stats)


if __name__ == "__main__":
    sys.exit(main())
