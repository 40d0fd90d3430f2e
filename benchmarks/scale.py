"""The service on Ray Serve as it grows: what it adds to the engine, replicas, nodes that die, large replies.

    python benchmarks/scale.py

A cluster of one or two nodes on this machine, each node a process group of its own (`ray.cluster_utils`), and the
default model with one thread for each replica. The engine alone runs in this process, with the same thread and picture.
Load comes from clients in threads of this process, so that it shares the cores with the service; every answer is
counted by its status, and compared with the first one. Where the machine has other work, ``chrt --rr 1`` before the
command keeps it away: the processes of the cluster inherit that.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before torch and ray: as ConvLens's own processes run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # ray.cluster_utils starts nodes without a token
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import httpx
import numpy as np
import psutil
import skimage
import torch
from table import RESULTS, show, write

from convlens import image
from convlens.engine.engine import Engine
from convlens.models import load, pack
from convlens.protocol.encoding import encode_response
from convlens.protocol.requests import parse_request
from convlens.rayserve import server
from convlens.rayserve.config import ServeArgs, config
from convlens.rayserve.server import RayServer
from convlens.rayserve.tokens import digest_of
from convlens.torchserve import archive
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.torchserve.server_config import free_ports

PICTURE = Path(skimage.__file__).parent / "data" / "rocket.jpg"
NAME = "scale"
CLIENTS = 8
LARGE = {"methods": ["saliency"], "size": "original", "output": ["array"], "accept": "application/vnd.safetensors"}
LARGE_SIDE = (1100, 800)  # × 3 channels × 4 bytes: 10.6 MB


@dataclass
class Load:
    """Clients that ask the same without a pause until told to stop.

    ``answers``: when, how long it took, and the status; 0 for a connection that broke or an answer with other
    predictions than the first.
    """

    live: RayServer
    picture: bytes
    clients: int = CLIENTS
    answers: list[tuple[float, float, int]] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        wanted: list[Any] = []
        with httpx.Client(timeout=60, trust_env=False, headers=self.live.headers()) as client:
            while not self._stop.is_set():
                started = time.monotonic()
                try:
                    got = client.post(f"{self.live.inference_url}/predictions/{NAME}", content=self.picture)
                    status = got.status_code
                    if status == 200:
                        body = got.json()
                        self.versions.add(body["model"]["version"])
                        labels = [one["label"] for one in body["predictions"]]
                        wanted = wanted or labels
                        status = 200 if labels == wanted else 0
                except httpx.HTTPError:
                    status = 0
                self.answers.append((time.monotonic(), time.monotonic() - started, status))

    def statuses(self) -> Counter[int]:
        return Counter(status for _, _, status in self.answers)

    def longest_gap(self) -> float:
        """Seconds without any good answer."""
        good = sorted(at for at, _, status in self.answers if status == 200)
        return max((later - earlier for earlier, later in itertools.pairwise(good)), default=float("inf"))


@contextmanager
def under_load(live: RayServer, picture: bytes, *, clients: int = CLIENTS) -> Iterator[Load]:
    load_ = Load(live, picture, clients)
    threads = [threading.Thread(target=load_.run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load_
    finally:
        load_._stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def cluster(cpus: int) -> Iterator[Any]:
    """A cluster of one node so far, that holds so many replicas."""
    for name, value in server.ENVIRONMENT.items():  # as ``convlens serve`` starts Ray
        os.environ.setdefault(name, value)
    from ray.cluster_utils import Cluster

    temp = server.make_temp_dir()
    (Path(tempfile.gettempdir()) / "ray").mkdir(exist_ok=True)  # where Ray leaves a note of its last cluster
    head = {"num_cpus": cpus, "include_dashboard": False, "node_ip_address": server.LOOPBACK, "temp_dir": str(temp)}
    made = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": 400_000_000})
    try:
        yield made
    finally:
        made.shutdown()


def archives(folder: Path) -> dict[str, Path]:
    """The default model in two versions."""
    pack(load(device="cpu"), folder / "model")
    options = ArchiveOptions(batch_size=8, max_batch_delay_ms=1)
    return {
        version: archive.build(
            name=NAME, model_dir=folder / "model", store=folder / version, version=version, options=options
        )
        for version in ("1.0", "2.0")
    }


def described(path: Path, replicas: int) -> dict[str, Any]:
    ports = free_ports()
    args = ServeArgs(archives={NAME: str(path)}, roles=("quick",))
    made = config(args, host=server.LOOPBACK, port=ports.inference, grpc_port=ports.grpc_inference, location="HeadOnly")
    return with_replicas(made, replicas)


def with_replicas(config_: Mapping[str, Any], replicas: int) -> dict[str, Any]:
    deployments = [{"name": f"{NAME}-quick", "num_replicas": replicas}]
    return {**config_, "applications": [{**config_["applications"][0], "deployments": deployments}]}


def deployed(live: RayServer, config_: Mapping[str, Any]) -> dict[str, Any]:
    """Deploys it with the token that the running service has."""
    running = json.loads(json.dumps(dict(config_)))
    running["applications"][0]["args"]["tokens_sha256"] = [digest_of(live.token())]
    server.deploy(running, timeout_s=600)
    return running


# --- what is measured -------------------------------------------------------------------------------------------------


def seconds(call: Any, repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return found


def overhead(live: RayServer, picture: bytes, repeats: int) -> dict[str, Any]:
    """A prediction over HTTP against reading, running and encoding the same in this process."""
    engine = Engine(load(device="cpu"))

    def alone() -> None:
        call = parse_request({"body": picture}, {})
        encode_response(call, engine.run(call.requests))  # type: ignore[arg-type]

    with httpx.Client(timeout=60, trust_env=False, headers=live.headers()) as client:
        url = f"{live.inference_url}/predictions/{NAME}"
        sides = {"engine": alone, "Ray Serve": lambda: client.post(url, content=picture).raise_for_status()}
        for call in sides.values():
            seconds(call, 5)
        found: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, call in sides.items():
                found[name] += seconds(call, 5)
    ours, beside = (statistics.median(found[name]) for name in ("Ray Serve", "engine"))
    return row("a prediction over HTTP", ours, beside, (ours - beside) * 1e3, "ms over the engine")


def large_replies(live: RayServer, count: int = 8) -> dict[str, Any]:
    """So many replies of 10 MB at once, of one batch."""
    pixels = np.random.default_rng(0).integers(0, 255, (LARGE_SIDE[1], LARGE_SIDE[0], 3), dtype=np.uint8)
    files = {"data": ("a", image.encode_jpeg(pixels)), "params": (None, json.dumps(LARGE))}
    sizes: list[int] = []

    def ask() -> None:
        with httpx.Client(timeout=120, trust_env=False, headers=live.headers()) as client:
            got = client.post(f"{live.inference_url}/predictions/{NAME}", files=files).raise_for_status()
            sizes.append(len(got.content))

    def together() -> float:
        threads = [threading.Thread(target=ask) for _ in range(count)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    together()
    took = statistics.median(together() for _ in range(3))
    assert min(sizes) > 10_000_000
    return row(f"{count} replies of {min(sizes) / 1e6:.1f} MB at once", took, 2.0, took, "s, allowed 2")


def throughput(live: RayServer, picture: bytes, seconds_: float) -> tuple[float, dict[str, float]]:
    """Answers a second, and the processor's milliseconds that each takes in the proxy, the ingress and the replicas."""
    with under_load(live, picture) as load_:
        time.sleep(2.0)
        begun, before, used = time.monotonic(), len(load_.answers), processor_seconds()
        time.sleep(seconds_)
        answered, elapsed, after = len(load_.answers) - before, time.monotonic() - begun, processor_seconds()
    assert set(load_.statuses()) == {200}, load_.statuses()
    return answered / elapsed, {part: (after[part] - used[part]) / answered * 1e3 for part in PARTS}


# Part of the service -> what its processes are called.
PARTS = {
    "proxy": "ray::ProxyActor",
    "ingress": ":ingress",
    "replicas": f":{NAME}-quick",
    "controller": "ray::ServeController",
}


def processor_seconds() -> dict[str, float]:
    found = dict.fromkeys(PARTS, 0.0)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            title, times = " ".join(process.cmdline()), process.cpu_times()
            for part, name in PARTS.items():
                if name in title and title.startswith("ray::"):
                    found[part] += times.user + times.system
    return found


def row(what: str, ours: float, beside: float, result: float, unit: str) -> dict[str, Any]:
    return {"what": what, "ours": ours, "beside": beside, "result": result, "unit": unit}


def measured(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    picture, made, rows = PICTURE.read_bytes(), archives(folder), []
    with cluster(cpus=3) as nodes:
        config_ = described(made["1.0"], 1)
        with server.running(config_, run_dir=folder / "run", address=nodes.address, timeout_s=600) as live:
            rows.append(overhead(live, picture, given.repeats))
            rows.append(large_replies(live))
            one, parts = throughput(live, picture, given.seconds)
            rows.append(row("answers/s of 8 clients, 1 replica", one, one, one, "answers/s"))
            rows += [row(f"processor time of an answer: {part}", ms, ms, ms, "ms") for part, ms in parts.items()]

            def refused_while(what: str, *steps: Mapping[str, Any]) -> None:
                with under_load(live, picture) as load_:
                    for step in steps:
                        deployed(live, step)
                        time.sleep(2.0)
                bad = sum(count for status, count in load_.statuses().items() if status != 200)
                rows.append(row(what, len(load_.answers), bad, bad, f"refused; versions {sorted(load_.versions)}"))

            refused_while("1 to 3 to 1 replicas under load", *(with_replicas(config_, n) for n in (3, 1)))
            second = json.loads(json.dumps(config_).replace(str(made["1.0"]), str(made["2.0"])))
            refused_while("rolling update under load", second)
            deployed(live, with_replicas(second, 2))
            two, _ = throughput(live, picture, given.seconds)
            rows.append(row("answers/s of 8 clients, 2 replicas", two, one, two / one, "× of 1 replica"))
    with cluster(cpus=1) as nodes:
        config_ = described(made["1.0"], 1)
        with server.running(config_, run_dir=folder / "run", address=nodes.address, timeout_s=600) as live:
            node = nodes.add_node(num_cpus=1, node_ip_address=server.LOOPBACK, object_store_memory=200_000_000)
            deployed(live, with_replicas(config_, 2))
            with under_load(live, picture) as load_:
                time.sleep(3.0)
                killed = time.monotonic()
                nodes.remove_node(node, allow_graceful=False)
                time.sleep(20.0)
            after = [answer for answer in load_.answers if answer[0] > killed]
            failed = sum(status != 200 for _, _, status in after)
            gap = load_.longest_gap()
            rows.append(
                row("a node killed under load", gap, 15.0, gap, f"s without an answer; {failed} of {len(after)} failed")
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load, for each throughput")
    parser.add_argument("--out", type=Path, default=RESULTS / "scale-cpu.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder  # so that nothing of Ray and of unpacked archives is left
        rows = measured(Path(folder), given)
    show(rows)
    write(given.out, device="cpu", rows=rows, clients=CLIENTS, seconds=given.seconds)


if __name__ == "__main__":
    main()
