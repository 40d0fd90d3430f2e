"""What a prediction waits while somebody else sends files that are slow to read.

    python benchmarks/slow_neighbours.py

One client asks TorchServe for the predictions of a photograph, ten times a second; first alone, then while another
sends the slow files of benchmarks/reading.py, at moments of its own, on average ``--every`` seconds apart.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import skimage
from reading import SIDE, TOTAL
from serving_clients import Rest, timed
from slow_images import SLOW  # of tests/support, where reading.py finds it
from table import RESULTS, show, write

from convlens.models import load, pack
from convlens.torchserve import archive, server
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.torchserve.server import Server
from convlens.torchserve.server_config import LOOPBACK

NAME = "net"
PICTURE = Path(skimage.__file__).parent / "data" / "coffee.png"
EVERY_S, ALONE = 0.1, 660  # a prediction each, and how many of them alone


def paced(pauses_s: Iterable[float]) -> Iterator[int]:
    """0, 1, 2 ..., each that much after the moment of the one before, or later."""
    due = time.perf_counter()
    for n, pause_s in enumerate(pauses_s):
        time.sleep(max(0.0, due - time.perf_counter()))
        yield n
        due += pause_s


def status(live: Server, data: bytes) -> int:
    """What the server answers a file with."""
    with closing(http.client.HTTPConnection(LOOPBACK, live.ports.inference, timeout=60)) as connection:
        headers = {**live.headers("inference"), "Content-Type": "application/octet-stream"}
        connection.request("POST", f"/predictions/{NAME}", data, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status


def waits(live: Server, asked: Iterable[int]) -> list[float]:
    picture = PICTURE.read_bytes()
    with closing(Rest(live, NAME)) as rest:
        return [timed(lambda: rest.bare(picture)) for _ in asked]


def beside(live: Server, work: Callable[[], Any]) -> list[float]:
    """The seconds of predictions from the beginning of the work to its end."""
    thread = threading.Thread(target=work)
    thread.start()
    found = waits(live, itertools.takewhile(lambda _: thread.is_alive(), paced(itertools.repeat(EVERY_S))))
    thread.join()
    return found


def row(live: Server, workers: int, count: int, every_s: float) -> dict[str, Any]:
    files = [SLOW[name].make(TOTAL, SIDE) for name in itertools.islice(SLOW, count)]
    answers: Counter[int] = Counter()

    def send() -> None:
        chance = random.Random(0)
        for n in paced(chance.expovariate(1 / every_s) for _ in files):
            answers[status(live, files[n])] += 1

    waits(live, paced([EVERY_S] * 30))  # to warm up
    alone = waits(live, paced([EVERY_S] * ALONE))
    with_them = beside(live, send)
    (p50, p99), (p50_beside, p99_beside) = map(quantiles, (alone, with_them))
    return {
        "workers": workers,
        "predictions alone": len(alone),
        "predictions": len(with_them),
        "slow files": len(files),
        "seconds apart": every_s,
        "answers to them": " ".join(f"{code}: {number}" for code, number in sorted(answers.items())),
        "p50": p50,
        "p50 beside": p50_beside,
        "p99": p99,
        "p99 beside": p99_beside,
        "p99 beside / p99": p99_beside / p99,
    }


def quantiles(seconds: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    return statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="*", type=int, default=[1])
    parser.add_argument("--every", nargs="*", type=float, default=[1.0, 3.0], help="seconds between slow files")
    parser.add_argument("--files", type=int, default=len(SLOW))
    parser.add_argument("--out", type=Path, default=RESULTS / "slow-neighbours-cpu.json")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pack(load(device="cpu"), folder / "model")
        for workers in given.workers:
            options = ArchiveOptions(device="cpu", min_workers=workers)
            store = folder / f"store-{workers}"
            made = archive.build(name=NAME, model_dir=folder / "model", gallery=None, store=store, options=options)
            with server.running(archives={NAME: made}, run_dir=folder / f"run-{workers}") as live:
                rows += [row(live, workers, given.files, every_s) for every_s in given.every]
    show(rows)
    write(given.out, device="cpu", rows=rows)


if __name__ == "__main__":
    main()
