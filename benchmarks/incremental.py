"""The exact incremental sweep against our own full ones, in one run.

    python benchmarks/incremental.py --device cpu --models torchvision:squeezenet1_0:untrained

A real photograph, 224 px, windows of 32 px, 8 px apart: 625 of them. The full sweep is made both ways that ONNX Runtime
has, as one graph and as batches of pictures for a graph of scores; a ratio is the median over the turns of the faster
one's time against the incremental graph's. Sides take turns. A sweep is a hundred runs of its loop's body, so no call
is spent on warming up. Graphs are exported, and so compared with torch, beforehand, and the maps of all sides are
compared with the full graph's. ``expected`` is what the exporter foretold; where it foretold less than 1.05 it wrote a
full sweep, and both graphs are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: as ConvLens's own processes run

import numpy as np
import onnxruntime
import skimage.data
import torch
from PIL import Image
from table import RESULTS, ratios, show, write

from convlens import image
from convlens.explain.sweeps.windows import Windows
from convlens.models import DEFAULT, Classifier, load
from convlens.runtime.onnx_runtime import OnnxRuntime, Providers
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.types import Floats
from export.compatibility import FAMILIES
from export.exporter import ExportReport, export

WINDOW, STRIDE, SCORED = 32, 8, 16
Side = Callable[[], Floats]


def scored(x_CHW: Floats, target: int, graph: OnnxRuntime) -> Floats:
    """The grid (R, Q) by a graph of scores."""
    windows = Windows(*x_CHW.shape[1:], WINDOW, STRIDE)
    parts = [graph.logits(batch)[:, target] for batch in _hidden(x_CHW, windows)]
    return np.concatenate(parts).reshape(len(windows.tops), len(windows.lefts))


def _hidden(x_CHW: Floats, windows: Windows) -> Iterator[Floats]:
    for first in range(0, len(windows), SCORED):
        corners = windows.corners[first : first + SCORED]
        x_NCHW = np.repeat(x_CHW[None], len(corners), axis=0)
        for copy_CHW, (top, left) in zip(x_NCHW, corners, strict=True):
            copy_CHW[:, top : top + WINDOW, left : left + WINDOW] = 0.0
        yield x_NCHW


def sides(
    classifier: Classifier, x_CHW: Floats, target: int, folder: Path, given: argparse.Namespace
) -> tuple[dict[str, Side], ExportReport]:
    providers: Providers = "cuda" if classifier.device.type == "cuda" else "cpu"
    opened: dict[str, Any] = {"providers": providers, "spin": given.spin}
    if providers == "cpu":
        opened["threads"] = torch.get_num_threads()
    made: dict[str, Any] = {"window": WINDOW, "stride": STRIDE, "batch": given.batch}
    full = export(classifier, "occlusion", folder / "full.onnx", **made)
    less = export(classifier, "occlusion", folder / "incremental.onnx", strategy="incremental", **made)
    graphs = {name: OnnxRuntime(report.path, **opened) for name, report in (("full", full), ("incremental", less))}
    found: dict[str, Side] = {name: lambda graph=graph: graph.sweep(x_CHW, target) for name, graph in graphs.items()}
    if not given.without_scores:
        scores = OnnxRuntime(export(classifier, "scores", folder / "scores.onnx").path, **opened)
        found["scores"] = lambda: scored(x_CHW, target, scores)
    return found, less


def timed(each: dict[str, Side], repeats: int) -> tuple[dict[str, list[float]], dict[str, Floats]]:
    """Seconds of each call, by side, and what the last one gave."""
    seconds: dict[str, list[float]] = {name: [] for name in each}
    grids: dict[str, Floats] = {}
    for turn in range(repeats):
        for name in list(each) if turn % 2 == 0 else reversed(list(each)):
            started = time.perf_counter()
            grids[name] = each[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds, grids


def compare(name: str, given: argparse.Namespace) -> dict[str, Any]:
    classifier = load(f"{name}?size=224" if name != DEFAULT else name, device=given.device)
    x_CHW = image.prepare(Image.fromarray(skimage.data.chelsea()), classifier.spec).x_CHW
    with torch.inference_mode():
        pixels_NCHW = torch.as_tensor(x_CHW, device=classifier.device)[None]
        target = int(classifier.module(pixels_NCHW)[0].argmax())
    with tempfile.TemporaryDirectory() as folder:
        each, report = sides(classifier, x_CHW, target, Path(folder), given)
        seconds, grids = timed(each, given.repeats)
    best = min((side for side in each if side != "incremental"), key=lambda side: statistics.median(seconds[side]))
    sweep = report.contract.sweep
    return {
        "model": classifier.spec.name,
        "strategy": sweep.strategy if sweep else "",
        **{f"{side} s": statistics.median(seconds[side]) for side in each},
        "best full": best,
        "full / incremental": ratios(seconds[best], seconds["incremental"])[0],
        "expected": report.speed_up,
        "grid off by": max(_difference(grid_RQ, grids["full"]) for grid_RQ in grids.values()),
    }


def _difference(grid_RQ: Floats, expected_RQ: Floats) -> float:
    return float(np.abs(grid_RQ - expected_RQ).max() / np.abs(expected_RQ).max())


def _kept(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The file's rows of other models, before these."""
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    new = {row["model"] for row in rows}
    return [row for row in before if row["model"] not in new] + rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=FAMILIES)
    parser.add_argument("--batch", type=int, default=8, help="windows of a turn of our graphs")
    parser.add_argument("--spin", action="store_true", help="let ONNX Runtime's waiting threads stay awake")
    parser.add_argument("--without-scores", action="store_true", help="make full sweeps by one graph only")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--add", action="store_true", help="keep the file's rows of other models")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    kept, path = keep_freed_memory(), given.out or RESULTS / f"incremental-{given.device.partition(':')[0]}.json"
    rows = [compare(name, given) for name in given.models]
    show(rows)
    write(
        path,
        device=given.device,
        rows=_kept(path, rows) if given.add else rows,
        onnxruntime=onnxruntime.__version__,
        input="224 × 224, float32, window 32, stride 8",
        batch=given.batch,
        keep_freed_memory=kept,
        spin=given.spin,
        repeats=given.repeats,
    )


if __name__ == "__main__":
    main()
