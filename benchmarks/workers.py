"""How soon a worker is ready, and what memory it takes: an archive of graphs beside the same model by torch.

    python benchmarks/workers.py --repeats 3

Real TorchServes on 127.0.0.1, taking turns, each with one archive: a handler that does nothing, the network, graphs.
Ready is the first answer to a real picture after the server's start, Java's included; memory is the worker's own
(unique set size) after predictions, saliency, guided backprop and occlusion of four photographs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import httpx
import psutil
import skimage
from table import RESULTS, show, write

from convlens.client import Client
from convlens.models import DEFAULT, load, pack
from convlens.torchserve import archive, server
from convlens.torchserve.archive_config import ArchiveOptions
from export.bundle import BESIDE, bundle

EMPTY, TORCH, ONNX = "empty", "torch", "onnx"
KINDS = ("embedding", "saliency", "guided_backprop")
METHODS = ("saliency", "guided_backprop", "occlusion")
PICTURES = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")
DATA = Path(skimage.__file__).parent / "data"
NOTHING = """class Nothing:
    def initialize(self, context):
        self.initialized = True

    def handle(self, data, context):
        return ["{}" for _ in data]
"""


def archives(model: str, folder: Path) -> dict[str, Path]:
    classifier = load(model, device="cpu")
    pack(classifier, folder / "model")
    handler = folder / "nothing.py"
    handler.write_text(NOTHING, encoding="utf-8")
    beside = bundle(classifier, folder / "beside", kinds=BESIDE).folder
    alone = bundle(classifier, folder / "alone", kinds=KINDS).folder
    made: dict[str, dict[str, Any]] = {
        EMPTY: {"model_dir": None, "options": ArchiveOptions(handler=handler)},
        TORCH: {"model_dir": folder / "model", "graphs": beside},
        ONNX: {"model_dir": None, "graphs": alone},
    }
    return {name: archive.build(name=name, store=folder / "store", **how) for name, how in made.items()}


def measured(name: str, path: Path, run_dir: Path) -> tuple[float, int, int]:
    """Seconds until the first answer, and the worker's bytes then and after some work."""
    started = time.perf_counter()
    with server.running(archives={name: path}, run_dir=run_dir) as live:
        _ask(live, name, PICTURES[0], ())
        ready, before = time.perf_counter() - started, _memory(live, name)
        for picture in PICTURES if name != EMPTY else ():
            _ask(live, name, picture, METHODS)
        return ready, before, _memory(live, name)


def _ask(live: server.Server, name: str, picture: str, methods: tuple[str, ...]) -> None:
    body, headers = (DATA / picture).read_bytes(), live.headers("inference")
    if name == EMPTY:
        url = f"{live.inference_url}/predictions/{name}"
        httpx.post(url, content=body, headers=headers, trust_env=False).raise_for_status()
    else:
        with Client(live.inference_url, model=name, key_file=live.key_file, form="json") as client:
            client.explain(body, methods=list(methods), output=["array", "overlay"])


def _memory(live: server.Server, name: str) -> int:
    url, headers = f"{live.management_url}/models/{name}", live.headers("management")
    (described,) = httpx.get(url, headers=headers, trust_env=False).json()
    return int(psutil.Process(described["workers"][0]["pid"]).memory_full_info().uss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "workers.json")
    given = parser.parse_args()
    found: dict[str, list[tuple[float, int, int]]] = {EMPTY: [], TORCH: [], ONNX: []}
    with tempfile.TemporaryDirectory() as temp:
        built = archives(given.model, Path(temp))
        for turn in range(given.repeats):
            for name in list(found) if turn % 2 == 0 else reversed(list(found)):
                found[name].append(measured(name, built[name], Path(temp) / f"run-{name}-{turn}"))
    ready, first, worked = ({name: statistics.median(c) for name, c in _column(found, n).items()} for n in range(3))
    rows = [
        {
            "worker": name,
            "ready s": ready[name],
            "memory MB": first[name] / 1e6,
            "memory after work MB": worked[name] / 1e6,
            "above empty MB": (worked[name] - worked[EMPTY]) / 1e6,
            "share of torch's": (worked[name] - worked[EMPTY]) / (worked[TORCH] - worked[EMPTY]),
        }
        for name in found
    ]
    show(rows)
    write(given.out, device="cpu", rows=rows, model=given.model, repeats=given.repeats)


def _column(found: dict[str, list[tuple[float, int, int]]], n: int) -> dict[str, list[float]]:
    return {name: [float(each[n]) for each in tries] for name, tries in found.items()}


if __name__ == "__main__":
    main()
