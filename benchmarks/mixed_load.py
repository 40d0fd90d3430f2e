"""A thousand mixed requests of sixteen clients on each server: every reply right, and memory as it was.

    python benchmarks/mixed_load.py

A small network (SqueezeNet at 64 pixels, untrained) behind TorchServe with one worker, and behind Ray Serve with two
replicas for predictions, one for sweeps and one for neighbours. Every method at its cheapest, predictions and
neighbours, over REST and gRPC in turn. Each reply is compared with what the same request gets when nobody else asks;
the run ends with an error where one differs or is refused. Memory is the resident set of the processes that answer,
summed: after four hundred requests to warm up, and after a thousand more. (Their proportional share would count what
libraries they have in common once, but it changes as other processes of the machine come and go.)
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

sys.path.append(str(Path(__file__).parents[1] / "tests/support"))

import httpx
import psutil
from crowds import (
    CLIENTS,
    THUMBNAILS,
    assert_each_is_what_it_is_alone,
    batches,
    crowd,
    kinds,
    over_grpc,
    over_rest,
    questions,
)
from live_grpc import calls
from small_server import SMALL, built, packed, worker_of
from table import RESULTS, show, write

from convlens.rayserve import server as ray_server
from convlens.rayserve.config import ServeArgs, config
from convlens.torchserve import server as torchserve
from convlens.torchserve.launcher import ServerSettings
from convlens.torchserve.server_config import LOOPBACK, free_ports

WARM_UP, REQUESTS = 400, 1000
# What the processes are called that see a request on Ray Serve.
ANSWERING = ("ray::ProxyActor", ":ingress", f":{SMALL}-quick", f":{SMALL}-sweeps", f":{SMALL}-neighbours")
Processes = Callable[[], list[psutil.Process]]


@contextmanager
def on_torchserve(archive: Path, folder: Path) -> Iterator[tuple[Any, Processes]]:
    settings = ServerSettings(threads=1)
    with torchserve.running(archives={SMALL: archive}, run_dir=folder / "torchserve", settings=settings) as live:
        yield live, lambda: [worker_of(live, SMALL)]


@contextmanager
def on_ray(archive: Path, folder: Path) -> Iterator[tuple[Any, Processes]]:
    ports = free_ports()
    args = ServeArgs(archives={SMALL: str(archive)}, cpus=0.5)
    described = config(args, host=LOOPBACK, port=ports.inference, grpc_port=ports.grpc_inference, location="HeadOnly")
    described["applications"][0]["deployments"] = [{"name": f"{SMALL}-quick", "num_replicas": 2}]
    with ray_server.running(described, run_dir=folder / "ray", timeout_s=600) as live:
        yield live, answering_processes


def answering_processes() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if any(name in " ".join(process.cmdline()) for name in ANSWERING)
    ]


SERVERS = {"TorchServe, 1 worker": on_torchserve, "Ray Serve, 2 replicas": on_ray}


def measured(name: str, archive: Path, folder: Path) -> dict[str, Any]:
    asked = questions(REQUESTS, THUMBNAILS, kinds(64))
    limits = httpx.Limits(max_connections=None)
    with (
        SERVERS[name](archive, folder) as (live, processes),
        calls(live) as over,
        httpx.Client(timeout=120, trust_env=False, limits=limits) as client,
    ):
        asks = [over_rest(live, client, SMALL), over_grpc(over, SMALL)]
        crowd(asks, asked[:WARM_UP])
        before, pids = megabytes(processes()), {process.pid for process in processes()}
        started = time.perf_counter()
        replies = crowd(asks, asked)
        seconds = time.perf_counter() - started
        after = megabytes(processes())
        assert pids == {process.pid for process in processes()}, "a process died on the way"
        assert_each_is_what_it_is_alone(asks[0], asked, replies)
    return {
        "server": name,
        "requests": len(replies),
        "different": len(set(asked)),
        "right": len(replies),
        "batches": len(batches(replies)),
        "seconds": seconds,
        "processes": len(pids),
        "MB before": before,
        "MB after": after,
        "after / before": after / before,
    }


def megabytes(processes: list[psutil.Process]) -> float:
    return sum(process.memory_info().rss for process in processes) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", default=list(SERVERS), choices=list(SERVERS))
    parser.add_argument("--out", type=Path, default=RESULTS / "mixed_load-cpu.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temp:
        os.environ["TMPDIR"] = tempfile.tempdir = temp  # so that nothing of Ray and of unpacked archives is left
        archive = built(SMALL, packed(Path(temp)))
        rows = [measured(name, archive, Path(temp)) for name in given.servers]
    show(rows)
    write(given.out, device="cpu", rows=rows, clients=CLIENTS, warm_up=WARM_UP)


if __name__ == "__main__":
    main()
