"""Saliency, guided backprop and deconvnet together: one ForwardPass against captum's three calls, in one run.

    python benchmarks/relu_rules.py --device cpu --batch 1 4

captum gets the model and the pictures as they are loaded (contiguous), and once more with pictures in channels_last,
which is what ForwardPass makes of them by itself. Sides take turns; a ratio is the median over the turns. Both end
with arrays on the CPU, and what they found is compared, since on these two networks captum is right.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import Deconvolution, GuidedBackprop, Saliency
from table import RESULTS, interleaved, ratios, show, write
from torch import Tensor

from convlens.explain import ForwardPass, run
from convlens.models import Classifier, load
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.types import Attribution

MODELS = ("torchvision:resnet18:untrained", "torchvision:squeezenet1_0:untrained")
METHODS = ("saliency", "guided_backprop", "deconvnet")


def ours(classifier: Classifier, x_NCHW: Tensor, targets: list[int]) -> list[np.ndarray]:
    forward = ForwardPass(classifier, x_NCHW)
    results = [run(method, forward, targets) for method in METHODS]
    return [result.values_NCHW for result in results if isinstance(result, Attribution)]


def captums(classifier: Classifier, x_NCHW: Tensor, targets: list[int]) -> list[np.ndarray]:
    module, x = classifier.module, x_NCHW.clone().requires_grad_()
    results = [
        Saliency(module).attribute(x, target=targets, abs=False),
        GuidedBackprop(module).attribute(x, target=targets),
        Deconvolution(module).attribute(x, target=targets),
    ]
    return [result.detach().cpu().numpy() for result in results]


def compare(name: str, batch: int, repeats: int, device: str) -> dict[str, Any]:
    classifier = load(name, device=device)
    x_NCHW = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(classifier.device)
    last_NCHW = x_NCHW.to(memory_format=torch.channels_last)
    targets = list(range(batch))
    sides = {
        "captum": lambda: captums(classifier, x_NCHW, targets),
        "captum, channels last": lambda: captums(classifier, last_NCHW, targets),
        "convlens": lambda: ours(classifier, x_NCHW, targets),
    }
    difference = disagreement(sides["convlens"](), sides["captum"]())
    seconds = interleaved(sides, repeats=repeats, device=device)
    row: dict[str, Any] = {"model": name.split(":")[1], "batch": batch, "repeats": repeats}
    row |= {f"{side} ms": statistics.median(each) * 1000 for side, each in seconds.items()}
    for side in ("captum", "captum, channels last"):
        middle, low, high = ratios(seconds[side], seconds["convlens"])
        row[f"{side} / convlens"] = middle
        row[f"{side} / convlens, quartiles"] = f"{low:.2f}..{high:.2f}"
    return row | {"difference": difference}


def disagreement(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The largest over the methods of the 99.9th percentile of differences, over the largest value.

    In float32 a unit within rounding of zero may switch, which moves single pixels.
    """
    pairs = zip(one, other, strict=True)
    return max(float(np.quantile(np.abs(a - b), 0.999) / np.abs(b).max()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "relu_rules.json")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "Setting backward hooks on ReLU activations")
    kept = keep_freed_memory()
    rows = [compare(name, batch, given.repeats, given.device) for name in given.models for batch in given.batch]
    show(rows)
    write(given.out, device=given.device, rows=rows, input="224 × 224, float32", keep_freed_memory=kept)


if __name__ == "__main__":
    main()
