"""ConvLens from a plain script against captum from a plain script, in one run: what a notebook's user gets.

    python benchmarks/python_api.py --repeats 3

Each library has a process of its own, with no environment variable and no allocator's setting, and the same network,
pictures and targets. An occlusion sweep of one photograph (169 windows of 32 px, 16 px apart, 224 px) as loaded, and
after ``convlens.accelerate``; saliency, guided backprop and deconvnet together; and Grad-CAM, SmoothGrad of 4 samples
and integrated gradients of 4 steps, for a batch of pictures. Sides take turns; a ratio is the median over the turns
against captum's best way (its chunks of 1, 8 or 32 windows; all samples of a batch at once, or 16 images at a time).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from plain_script import PlainScript
from table import RESULTS, interleaved, ratios, show, write

MODELS = (
    "packaged:efficientnet_lite0",
    *(f"torchvision:{name}:untrained?size=224" for name in ("squeezenet1_0", "resnet18", "resnet50")),
)
CAPTUM = {"occlusion": (1, 8, 32), "smoothgrad": (0, 1), "integrated_gradients": (0, 16)}
GRADIENTS = ("three rules", "grad_cam", "smoothgrad", "integrated_gradients")
EXACT = ("occlusion", "three rules", "grad_cam", "integrated_gradients")  # SmoothGrad's noise is each library's own


def compare(name: str, works: list[str], given: argparse.Namespace) -> list[dict[str, Any]]:
    images, rows = given.images, []
    libraries = ["captum", "convlens", *(["accelerated"] if "occlusion" in works else [])]
    with ExitStack() as stack:
        processes = {
            library: stack.enter_context(
                closing(PlainScript(library, name, device=given.device, targets=range(images)))
            )
            for library in libraries
        }
        for work in works:
            captums = {f"captum {n}": partial(processes["captum"].compute, work, n) for n in CAPTUM.get(work, (0,))}
            sides = libraries[1:] if work == "occlusion" else ["convlens"]
            ours = {library: partial(processes[library].compute, work) for library in sides}
            expected = next(iter(captums.values()))()
            apart = {side: _apart(call(), expected) for side, call in ours.items()} if work in EXACT else {}
            seconds = interleaved(captums | ours, repeats=given.repeats, device=given.device)
            best = min(captums, key=lambda side: statistics.median(seconds[side]))
            for side in ours:
                middle, low, high = ratios(seconds[best], seconds[side])
                rows.append(
                    {
                        "model": name.split(":")[1].partition("?")[0],
                        "work": work,
                        "images": 1 if work == "occlusion" else images,
                        "side": side,
                        "captum's best": best,
                        "captum s": statistics.median(seconds[best]),
                        "seconds": statistics.median(seconds[side]),
                        "captum / this": middle,
                        "quartiles": f"{low:.2f}..{high:.2f}",
                        "apart by": apart.get(side),
                    }
                )
    return rows


def _apart(found: Any, expected: Any) -> float:
    """The 99.9th percentile of differences, of the largest value: in float32 a unit within rounding of 0 may switch."""
    return float(np.quantile(np.abs(found - expected), 0.999) / np.abs(expected).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--works", nargs="+", default=["occlusion", *GRADIENTS])
    parser.add_argument("--images", type=int, default=16, help="of a batch for gradients")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["CONVLENS_CACHE"] = cache  # the one thing set: where ``accelerate`` keeps its graphs
        rows = [row for name in given.models for row in compare(name, given.works, given)]
    show(rows)
    out = given.out or RESULTS / f"python_api-{given.device.partition(':')[0]}.json"
    write(out, device=given.device, rows=rows, repeats=given.repeats)


if __name__ == "__main__":
    main()
