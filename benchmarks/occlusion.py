"""One occlusion sweep, every way ConvLens has of making it, against captum at three sizes of chunks, in one run.

    python benchmarks/occlusion.py --device cpu --repeats 5

A real photograph, 224 px, windows of 32 px, 16 px apart: 169 of them. Sides take turns; a ratio is the median over the
turns against captum's best. captum runs in a process of its own, as its users run it, and once more in ours, where
freed memory is kept and waiting threads sleep, which helps it, too ("captum N, our process"); ``best`` is of the first
kind. So does ConvLens, as loaded ("plain script") and after ``convlens.accelerate`` ("plain script, accelerated").
Graphs are exported, and so compared with torch, beforehand. The maps of all sides are compared with captum's: at this
size its windows end flush with the edge, as ours do, and both average over the windows.

"openvino, half" is the sweep alone, as "torch, half" is; "openvino, half, stated" is what a request for half gets, with
some windows in float32 to state its deviation, after a forward pass by torch; "plain script, accelerated, half" is that
request in a script after ``accelerate``. "own float32 / this" is against the fastest float32 side of ours; for a script
against "plain script, accelerated".

GFLOP/s is the network's arithmetic times the windows over the seconds. What torch reaches in a product of two matrices
stands beside it in the result: where a side comes near to it, no other way of computing every window in full is faster.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: as ConvLens's own processes run

import numpy as np
import onnxruntime
import skimage.data
import torch
from captum.attr import Occlusion
from PIL import Image
from plain_script import STRIDE, WINDOW, PlainScript
from table import RESULTS, interleaved, matmul_gflops, ratios, show, write
from torch.utils.flop_counter import FlopCounterMode

from convlens import image
from convlens.explain import ForwardPass, run
from convlens.explain.sweeps.autotune import HalfPrecisionScorer, SweepAutotuner
from convlens.explain.sweeps.backends import BatchedSweep, GraphSweep, ParallelSweep, SweepBackend
from convlens.explain.sweeps.device import DeviceSweep
from convlens.explain.sweeps.windows import Windows
from convlens.models import DEFAULT, Classifier, load
from convlens.runtime.onnx_runtime import OnnxRuntime, Providers
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.types import Attribution, Floats
from export.exporter import export

MODELS = (DEFAULT, *(f"torchvision:{name}:untrained" for name in ("squeezenet1_0", "resnet18", "resnet50")))
CAPTUM = (1, 8, 32)
Side = Callable[[], Floats]


def captums(classifier: Classifier, x_CHW: Floats, target: int, chunk: int) -> Floats:
    x_NCHW, window = torch.as_tensor(x_CHW, device=classifier.device)[None], (3, WINDOW, WINDOW)
    with torch.no_grad():
        found = Occlusion(classifier.module).attribute(
            x_NCHW, window, strides=(3, STRIDE, STRIDE), target=target, perturbations_per_eval=chunk
        )
    return found[0, 0].cpu().numpy()


def explained(classifier: Classifier, x_CHW: Floats, target: int, way: SweepBackend) -> Floats:
    """The whole method, with that way alone to go."""
    forward = ForwardPass(classifier, x_CHW[None], sweeps=SweepAutotuner([way]))
    result = run("occlusion", forward, [target], {"window": WINDOW, "stride": STRIDE})
    assert isinstance(result, Attribution)
    return result.values_NCHW[0, 0]


def in_half(classifier: Classifier, x_CHW: Floats, target: int, sweeps: SweepAutotuner) -> Floats:
    """As a request for half precision runs; it must not have run in float32."""
    options = {"window": WINDOW, "stride": STRIDE, "precision": "half"}
    result = run("occlusion", ForwardPass(classifier, x_CHW[None], sweeps=sweeps), [target], options)
    assert isinstance(result, Attribution)
    assert result.meta.precision == "half", result.meta.warnings
    return result.values_NCHW[0, 0]


def ways(classifier: Classifier, folder: Path, given: argparse.Namespace) -> dict[str, SweepBackend]:
    providers: Providers = "cuda" if classifier.device.type == "cuda" else "cpu"
    opened: dict[str, Any] = {"providers": providers, "spin": given.spin}
    if providers == "cpu":
        opened["threads"] = torch.get_num_threads()
    scores = OnnxRuntime(export(classifier, "scores", folder / "scores.onnx").path, **opened)
    module, device = classifier.module, classifier.device
    found: dict[str, SweepBackend] = {
        "torch": DeviceSweep(module, device),
        "torch, half": BatchedSweep(HalfPrecisionScorer(module, device)),
        "onnx scores": ParallelSweep(scores),
    }
    if providers == "cpu" and importlib.util.find_spec("openvino"):
        from convlens.runtime.openvino_runtime import BATCH, OpenVinoRuntime, precisions

        for precision in precisions():
            runtime = OpenVinoRuntime(scores.graph, precision=precision, threads=scores.threads, batch=BATCH)
            found[f"openvino, {precision}"] = ParallelSweep(runtime, copies=BATCH)
            found[f"openvino, {precision}"].fixed_run = BATCH
    for batch in given.batch if not given.sides or any("graph" in side for side in given.sides) else ():
        for half in (False, True) if providers == "cuda" else (False,):
            name = f"onnx graph {batch}{', half' if half else ''}"
            path = folder / f"{name.replace(' ', '-')}.onnx"
            export(classifier, "occlusion", path, window=WINDOW, stride=STRIDE, batch=batch, half=half)
            found[name] = GraphSweep(OnnxRuntime(path, **opened))
            found[name].precision = "float32"  # half is measured as a way of its own here
    return found


def gflop(classifier: Classifier, x_CHW: Floats) -> float:
    """Of one forward pass; two a multiply-add."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        classifier.module(torch.as_tensor(x_CHW, device=classifier.device)[None])
    return counter.get_total_flops() / 1e9


def compare(name: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    name = name if name == DEFAULT else f"{name}?size=224"
    classifier = load(name, device=given.device)
    x_CHW = image.prepare(Image.fromarray(skimage.data.chelsea()), classifier.spec).x_CHW
    target = int(ForwardPass(classifier, x_CHW[None]).logits_NK[0].argmax())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONVLENS_CACHE"] = f"{folder}/cache"  # where ``accelerate`` keeps its graphs
        with ExitStack() as stack:
            alone, plain, accelerated = (
                stack.enter_context(closing(PlainScript(library, name, targets=[target], device=given.device)))
                for library in ("captum", "convlens", "accelerated")
            )
            each: dict[str, Side] = {f"captum {n}": (lambda n=n: alone.compute("occlusion", n)[0]) for n in CAPTUM}
            each["plain script"] = lambda: plain.compute("occlusion")[0]
            each["plain script, accelerated"] = lambda: accelerated.compute("occlusion")[0]
            if _computes_in_half(given.device):
                each["plain script, accelerated, half"] = lambda: accelerated.compute("occlusion in half")[0]
            for n in CAPTUM[1:]:
                each[f"captum {n}, our process"] = lambda n=n: captums(classifier, x_CHW, target, n)
            ours = ways(classifier, Path(folder), given)
            for way_name, way in ours.items():
                each[way_name] = lambda way=way: explained(classifier, x_CHW, target, way)
            if "openvino, half" in ours:
                half = copy.copy(ours["openvino, half"])
                half.precision = "half"
                sweeps = SweepAutotuner([ours["onnx scores"], half])
                each["openvino, half, stated"] = lambda: in_half(classifier, x_CHW, target, sweeps)
            expected_HW = each["captum 1"]()
            each = {side: call for side, call in each.items() if not given.sides or side in given.sides}
            differences = {side: _difference(call(), expected_HW) for side, call in each.items()}
            seconds = interleaved(each, repeats=given.repeats, device=given.device)
    best, own = (
        min((side for side in each if side in among), key=lambda side: statistics.median(seconds[side]), default="")
        for among in ([f"captum {n}" for n in CAPTUM], [side for side in ours if "half" not in side])
    )
    work = gflop(classifier, x_CHW) * len(Windows(*x_CHW.shape[1:], WINDOW, STRIDE))
    return [
        {
            "model": classifier.spec.name,
            "side": side,
            "seconds": statistics.median(seconds[side]),
            "fastest": min(seconds[side]),
            "GFLOP/s": work / statistics.median(seconds[side]),
            "captum's best / this": ratios(seconds[best], seconds[side])[0] if best else 0.0,
            "captum's best": best,
            "own float32 / this": _own_ratio(seconds, side, own),
            "map off by": differences[side],
        }
        for side in each
    ]


def _own_ratio(seconds: dict[str, list[float]], side: str, own: str) -> float:
    own = "plain script, accelerated" if side.startswith("plain script") else own
    return ratios(seconds[own], seconds[side])[0] if own in seconds else 0.0


def _computes_in_half(device: str) -> bool:
    if device != "cpu" or not importlib.util.find_spec("openvino"):
        return False
    from convlens.runtime.openvino_runtime import precisions

    return "half" in precisions()


def _difference(map_HW: Floats, expected_HW: Floats) -> float:
    return float(np.abs(map_HW - expected_HW).max() / np.abs(expected_HW).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4, 8, 13], help="windows of a turn of our graphs")
    parser.add_argument("--spin", action="store_true", help="let ONNX Runtime's waiting threads stay awake")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", nargs="+", help="only these; a ratio to a side that was left out is 0")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    kept = keep_freed_memory()
    rows = [row for name in given.models for row in compare(name, given)]
    show(rows)
    write(
        given.out or RESULTS / f"occlusion-{given.device.partition(':')[0]}.json",
        device=given.device,
        rows=rows,
        onnxruntime=onnxruntime.__version__,
        matmul_gflops=matmul_gflops(given.device),
        input="224 × 224, float32, window 32, stride 16",
        keep_freed_memory=kept,
        spin=given.spin,
        repeats=given.repeats,
    )


if __name__ == "__main__":
    main()
