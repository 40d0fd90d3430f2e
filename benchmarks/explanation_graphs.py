"""Gradient explanations as ONNX graphs against the eager ones, in one run.

    python benchmarks/explanation_graphs.py --device cpu --batch 1 4

Eager is what ConvLens does without a graph: a recorded ForwardPass and one backward pass, pictures in channels_last,
freed memory kept. Both sides begin at normalised pictures on the host and end with arrays there; sides take turns, and
a ratio is the median over the turns. Graphs are exported, and so compared with torch, beforehand; how far they are
from eager in float32 here is stated by quantiles of the pixels, for a ReLU within rounding of zero may switch on one
side only (``export/verification.py``).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: as ConvLens's own processes run

import numpy as np
import onnxruntime
import torch
from table import RESULTS, interleaved, ratios, show, write

from convlens.explain import ForwardPass, run
from convlens.models import DEFAULT, Classifier, load
from convlens.runtime.graph_contract import GRADIENTS, GradientKind
from convlens.runtime.onnx_runtime import OnnxRuntime
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.types import Attribution, Floats
from export.exporter import ExportReport, export

_UNTRAINED = "alexnet vgg11 resnet18 densenet121 googlenet squeezenet1_0 mobilenet_v2"
MODELS = (DEFAULT, *(f"torchvision:{name}:untrained?size=224" for name in _UNTRAINED.split()))
METHODS: tuple[GradientKind, ...] = ("saliency", "guided_backprop")


def eager(classifier: Classifier, method: GradientKind, x_NCHW: Floats, targets: list[int]) -> Floats:
    result = run(method, ForwardPass(classifier, x_NCHW), targets)
    assert isinstance(result, Attribution)
    return result.values_NCHW


def compare(classifier: Classifier, method: GradientKind, given: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        report = export(classifier, method, Path(folder) / "graph.onnx")
        threads = torch.get_num_threads() if given.device == "cpu" else None
        providers = "cpu" if given.device == "cpu" else "cuda"
        graph = OnnxRuntime(report.path, providers=providers, threads=threads, spin=given.spin)
        return [row(classifier, method, graph, report, batch, given) for batch in given.batch]


def row(
    classifier: Classifier,
    method: GradientKind,
    graph: OnnxRuntime,
    report: ExportReport,
    batch: int,
    given: argparse.Namespace,
) -> dict[str, Any]:
    side = classifier.spec.crop
    x_NCHW = np.random.default_rng(batch).normal(size=(batch, 3, side, side)).astype(np.float32)
    targets = list(range(batch))
    sides = {
        "eager": lambda: eager(classifier, method, x_NCHW, targets),
        "graph": lambda: graph.gradient(x_NCHW, np.array(targets))[0],
    }
    expected, found = (call() for call in sides.values())
    off = np.abs(found - expected) / np.abs(expected).max()
    seconds = interleaved(sides, repeats=given.repeats, device=given.device)
    middle, low, high = ratios(seconds["eager"], seconds["graph"])
    return {
        "model": classifier.spec.name,
        "method": method,
        "batch": batch,
        "eager ms": statistics.median(seconds["eager"]) * 1000,
        "graph ms": statistics.median(seconds["graph"]) * 1000,
        "eager / graph": middle,
        "quartiles": f"{low:.2f}..{high:.2f}",
        "float64 off by": report.worst.relative,
        "float32 off by, median": float(np.median(off)),
        "99.9 %": float(np.quantile(off, 0.999)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=GRADIENTS)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--spin", action="store_true", help="let ONNX Runtime's waiting threads stay awake")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    kept = keep_freed_memory()
    rows = []
    for name in given.models:
        classifier = load(name, device=given.device)
        rows += [row for method in given.methods for row in compare(classifier, method, given)]
    show(rows)
    write(
        given.out or RESULTS / f"explanation_graphs-{given.device}.json",
        device=given.device,
        rows=rows,
        onnxruntime=onnxruntime.__version__,
        input="noise of each model's own side, float32",
        keep_freed_memory=kept,
        spin=given.spin,
        repeats=given.repeats,
    )


if __name__ == "__main__":
    main()
