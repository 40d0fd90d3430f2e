"""One server in the foreground, as containers run it: ``python -m convlens.serving.foreground NAME.mar``.

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
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from convlens.errors import ConvLensError, ServerError
from convlens.serving import config, probe, server
from convlens.serving.draining import drain
from convlens.serving.entries import entries
from convlens.serving.launch import Settings
from convlens.serving.server import Server

_LOOK_EVERY_S = 1.0
_LONGEST_S = 86400


@dataclass(frozen=True)
class Plan:
    """What to serve, and how long to wait at the end: ``linger_s`` for whoever still sends, ``drain_s`` for answers.

    ``base``: the configuration to start from, by default the committed one; its ports are the server's.
    """

    archives: tuple[Path, ...]
    run_dir: Path
    host: str = config.LOOPBACK
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
        ports=config.configured_ports(plan.base or config.committed()),
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
    if not drain(live, within_s=drain_s):
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
    parser = argparse.ArgumentParser(prog="python -m convlens.serving.foreground", description=__doc__)
    parser.add_argument("archives", nargs="+", type=Path, help="archives to serve, each under its own name")
    parser.add_argument("--run-dir", type=Path, default=Path(os.environ.get("CONVLENS_RUN_DIR", ".convlens/server")))
    parser.add_argument("--config", type=Path, help="config.properties to start from; default: the committed one")
    host = os.environ.get("CONVLENS_HOST", config.LOOPBACK)
    parser.add_argument("--host", default=host, help="where inference and metrics listen; default: $CONVLENS_HOST")
    linger, drained = os.environ.get("CONVLENS_LINGER_S", "0"), os.environ.get("CONVLENS_DRAIN_S", "30")
    parser.add_argument("--linger", type=_seconds, default=linger, help="seconds to serve on after SIGTERM")
    parser.add_argument("--drain", type=_seconds, default=drained, help="seconds to wait for requests in flight")
    given = parser.parse_args(arguments)
    try:
        ipaddress.IPv4Address(given.host)
    except ValueError:
        parser.error(f"--host {given.host!r} is no IPv4 address; use 127.0.0.1, or 0.0.0.0 for every network")
    return Plan(tuple(given.archives), given.run_dir, given.host, given.linger, given.drain, base=given.config)


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
    probe.probe_all(live.inference_url, live.models, key_file=live.key_file if live.auth else None, timeout_s=60.0)


def _say(message: str) -> None:
    print(message, flush=True)  # noqa: T201 - it is a command


if __name__ == "__main__":
    sys.exit(main())
