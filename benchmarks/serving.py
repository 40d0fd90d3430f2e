"""What serving costs: the server around the engine, batches against single requests, and captum behind the same server.

    python benchmarks/serving.py --device cpu

One TorchServe with four entries of the default model, on 127.0.0.1: `quick` (no delay), `batched` (up to 8 rows of a
forward pass), `single` (one), and `captum`, the handler of captum_handler.py. Idle entries cost nothing; sides take
turns. The engine alone runs in a process of its own, with the same threads and graphs, on the same picture, decoded
beforehand. Before anything is timed the answers of both handlers are compared.

With ``--clients 1 8 32`` (the default on a GPU) also answers a second of one kind of request from so many clients at
once, the median and the 99th percentile of their waiting, and the very first answer of the server against the median.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: as ConvLens's own processes run

import numpy as np
import skimage
from serving_clients import Grpc, Rest, latencies, throughput, timed
from serving_engine import EngineAlone
from table import RESULTS, ratios, show, write

from convlens.cli.photographs import other_photographs
from convlens.gallery import build_from
from convlens.models import load, pack
from convlens.torchserve import archive, server
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.torchserve.launcher import ServerSettings
from convlens.torchserve.server import Server
from convlens.types import Floats
from export.bundle import BESIDE, bundle

PICTURE = Path(skimage.__file__).parent / "data" / "rocket.jpg"
HANDLER = Path(__file__).parent / "captum_handler.py"
# Maps as they are drawn (the largest magnitude over the channels), and with all channels: 0.5 and 1.6 MB an answer.
GRADIENTS = {
    "maps": {"methods": ["saliency", "guided_backprop"], "output": ["array"], "reduce": "abs_max"},
    "all channels": {"methods": ["saliency", "guided_backprop"], "output": ["array"]},
}
SWEEP = {"method": "occlusion", "options": {"window": 32, "stride": 16}}
EVERYTHING = {
    "methods": ["saliency", "guided_backprop", SWEEP],
    "neighbours": 5,
    "thumbnails": False,
    "output": ["array"],
}
LOADS = {
    "predictions": {},
    "saliency and guided maps": GRADIENTS["maps"],
    "occlusion": {"methods": [SWEEP], "output": ["array"]},
    "everything": EVERYTHING,
}
NAMES = ["saliency", "guided_backprop", "occlusion", "neighbours"]
ASKED = 256  # requests of one kind, shared out to the clients
AT_A_TIME = (1, 8)  # windows of a forward pass of captum's occlusion; the better one counts


def archives(folder: Path, device: Literal["cpu", "gpu"]) -> dict[str, Path]:
    """The four entries, with the model, its gallery and, on a CPU, the graphs for its sweeps."""
    classifier = load(device="cpu")
    pack(classifier, folder / "model")
    build_from(list(other_photographs()), folder / "gallery", classifier)
    graphs = folder / "graphs" if device == "cpu" else None  # torch is faster on a GPU
    if graphs:
        bundle(classifier, graphs, kinds=BESIDE)
    parts = {"model_dir": folder / "model", "gallery": folder / "gallery", "store": folder / "store"}
    ours = {
        "quick": ArchiveOptions(device=device, batch_size=8, max_batch_delay_ms=1),
        "batched": ArchiveOptions(device=device, batch_size=8),
        "single": ArchiveOptions(device=device, batch_size=1),
    }
    made = {name: archive.build(name=name, **parts, graphs=graphs, options=options) for name, options in ours.items()}
    theirs = ArchiveOptions(device=device, batch_size=1, handler=HANDLER)
    return made | {"captum": archive.build(name="captum", **parts, options=theirs)}


def turns(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds (or what a side counts) of each call, after one to warm up; first in order, then backwards."""
    for call in sides.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in list(sides) if turn % 2 == 0 else reversed(list(sides)):
            found[name].append(sides[name]())
    return found


def arrays(body: bytes) -> dict[str, Floats]:
    """The maps of an answer of either handler, by method."""
    said = json.loads(body)
    found = {one["id"]: one.get("array") for one in said["explanations"]} if "explanations" in said else said
    return {name: _array(found[name]) for name in NAMES[:3]}


def _array(body: Mapping[str, Any]) -> Floats:
    values = np.frombuffer(base64.b64decode(body["data"]), body["dtype"])
    return values.reshape(body["shape"])


def differences(ours: Mapping[str, Floats], captums: Mapping[str, Floats]) -> dict[str, float]:
    """Of the largest value, by method."""
    return {name: float(np.abs(ours[name] - captums[name]).max() / np.abs(captums[name]).max()) for name in ours}


def _quartiles(seconds: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {"p50": middle, "p25": low, "p75": high}


def measured(folder: Path, given: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    picture = PICTURE.read_bytes()
    made = archives(folder, "gpu" if given.device == "cuda" else "cpu")
    settings = ServerSettings(threads=given.threads)
    with (
        server.running(archives=made, run_dir=folder / "run", settings=settings) as live,
        closing(EngineAlone(folder, PICTURE, threads=given.threads, device=given.device)) as alone,
        closing(Rest(live, "quick")) as rest,
        closing(Grpc(live, "quick")) as grpc,
        closing(Rest(live, "captum")) as captum,
    ):
        first = timed(lambda: rest.bare(picture))
        wanted = {n: {"methods": NAMES, "windows": n} for n in AT_A_TIME}
        apart = differences(arrays(rest.ask(picture, EVERYTHING)), arrays(captum.ask(picture, wanted[1])))
        predicting = turns(
            {
                "engine": lambda: alone.seconds({}),
                "REST": lambda: timed(lambda: rest.bare(picture)),
                "gRPC": lambda: timed(lambda: grpc.bare(picture)),
            },
            given.repeats * 10,
        )
        answering = {
            said: turns(
                {
                    name: lambda name=name, params=params: throughput(live, name, picture, params, clients=8, each=3)
                    for name in ("batched", "single")
                },
                given.repeats,
            )
            for said, params in GRADIENTS.items()
        }
        whole: dict[str, Callable[[], float]] = {"ConvLens": lambda: timed(lambda: rest.ask(picture, EVERYTHING))}
        for n, params in wanted.items():
            whole[f"captum {n}"] = lambda params=params: timed(lambda: captum.ask(picture, params))
        explaining = turns(whole, given.repeats)
        loads = [_load(live, picture, what, clients) for what in LOADS for clients in given.clients]
    batching = [_batching(said, answers) for said, answers in answering.items()]
    begin = [_first(first, predicting["REST"])] if given.clients else []
    return [*_overheads(predicting), *batching, _against(explaining), *begin, *loads], apart


def _first(seconds: float, later: Sequence[float]) -> dict[str, Any]:
    median = statistics.median(later)
    unit = "× the median of later ones"
    what = "the first prediction of the server"
    return {
        "what": what,
        "ours": seconds,
        "beside": median,
        "result": seconds / median,
        "unit": unit,
        **_quartiles(later),
    }


def _load(live: Server, picture: bytes, what: str, clients: int) -> dict[str, Any]:
    each = max(4, ASKED // clients)
    waited = latencies(live, "batched", picture, LOADS[what], clients=clients, each=each)
    ordered = sorted(waited.seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {
        "what": f"{what}, {clients} clients",
        "ours": len(ordered) / waited.elapsed,
        "beside": p99 / statistics.median(ordered),
        "result": len(ordered) / waited.elapsed,
        "unit": "answers/s; beside: 99th percentile ÷ median of the wait",
        **_quartiles(ordered),
    }


def _overheads(seconds: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    engine = statistics.median(seconds["engine"])
    return [
        {
            "what": f"a prediction by {door}",
            "ours": statistics.median(seconds[door]),
            "beside": engine,
            "result": (statistics.median(seconds[door]) - engine) * 1e3,
            "unit": "ms over Engine.run",
            **_quartiles(seconds[door]),
        }
        for door in ("REST", "gRPC")
    ]


def _batching(said: str, answers: Mapping[str, list[float]]) -> dict[str, Any]:
    return {
        "what": f"gradients ({said}), 8 clients, batches of 8 against 1",
        "ours": statistics.median(answers["batched"]),
        "beside": statistics.median(answers["single"]),
        "result": ratios(answers["batched"], answers["single"])[0],
        "unit": "× answers/s",
        **_quartiles(answers["batched"]),
    }


def _against(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    best = min((name for name in seconds if name != "ConvLens"), key=lambda name: statistics.median(seconds[name]))
    return {
        "what": f"everything in one request against {best}",
        "ours": statistics.median(seconds["ConvLens"]),
        "beside": statistics.median(seconds[best]),
        "result": ratios(seconds[best], seconds["ConvLens"])[0],
        "unit": "× faster",
        **_quartiles(seconds["ConvLens"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--clients", nargs="*", type=int, help="at once, for the loads; default: 1 8 32 on a GPU")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each worker and of the engine alone")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.clients is None:
        given.clients = [1, 8, 32] if given.device == "cuda" else []
    with tempfile.TemporaryDirectory() as folder:
        rows, apart = measured(Path(folder), given)
    show(rows)
    print("apart from captum by", {name: f"{value:.1e}" for name, value in apart.items()})
    out = given.out or RESULTS / f"serving-{given.device}.json"
    write(out, device=given.device, rows=rows, apart_from_captum=apart, threads=given.threads, repeats=given.repeats)


if __name__ == "__main__":
    main()
