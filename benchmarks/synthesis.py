"""What a step of synthesis costs over the bare forward and backward pass of the same network at the same size.

    python benchmarks/synthesis.py --device cpu

Sides take turns in one run: a step of each kind of work, and the network up to the same layers with the gradient of
their sum to the pictures. Steps of L-BFGS make several passes in their line search and count by passes. Also: seconds
of quilting 512² from 192², and the memory of a job after few and after many steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from table import RESULTS, interleaved, ratios, show, write

from convlens import load
from convlens.instrument import AveragePooling, PartialForward
from convlens.models import Classifier
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.synth.deepdream import Dream
from convlens.synth.feature_inversion import Invert
from convlens.synth.gradient_ascent import Ascent
from convlens.synth.gram_texture import Texture
from convlens.synth.quilting import Quilt

LONG = 10**6


def bare(classifier: Classifier, layers: tuple[str, ...], size: tuple[int, int], rows: int) -> Callable[[], None]:
    """One forward up to the layers, or all of it, and one gradient to the pictures."""
    x_NCHW = torch.randn(rows, 3, *size, device=classifier.device).requires_grad_()
    up_to = PartialForward(classifier.module, layers, x_NCHW.detach()) if layers else None

    def call() -> None:
        outs = list(up_to(x_NCHW).values()) if up_to else [classifier.module(x_NCHW)]
        torch.autograd.grad(sum(out.sum() for out in outs), x_NCHW)

    return call


def ascent(classifier: Classifier, rows: int, preset: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    work = Ascent(classes=tuple(range(rows)), preset=preset, steps=LONG, redirect_steps=0).begin(classifier)
    side = classifier.spec.crop
    return work.step, bare(classifier, (), (side, side), rows)


def dream(classifier: Classifier, picture: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    job = Dream(picture=picture, octaves=1, steps=LONG, side=320)
    return job.begin(classifier).step, bare(classifier, job.layers, (320, 320), 1)


def by_pass(job: Invert | Texture, classifier: Classifier, side: int, *, pools: bool) -> tuple[Any, Any]:
    """A step of L-BFGS, and as many bare passes as it made."""
    work: Any = job.begin(classifier)
    passes = [0]
    alone = bare(classifier, job.layers, (side, side), 1)

    def step() -> None:
        before = work._lbfgs.evaluations
        work.step()
        passes[0] = work._lbfgs.evaluations - before

    def several() -> None:
        for _ in range(max(1, passes[0])):
            if pools:
                with AveragePooling():
                    alone()
            else:
                alone()

    return step, several


def memory(job: Ascent, classifier: Classifier) -> dict[str, Any]:
    """Megabytes of the process after few and after many steps."""
    work, process, found = job.begin(classifier), psutil.Process(), {}
    for steps in (20, 200):
        while work.done < steps:
            work.step()
        found[steps] = process.memory_info().rss / 2**20
    return {"MB after 20 steps": found[20], "MB after 200 steps": found[200]}


def quilting(source: str) -> float:
    started = time.perf_counter()
    work = Quilt(source=source).begin(None)
    while work.done < work.total:
        work.step()
    work.finish()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", default="packaged:efficientnet_lite0")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    keep_freed_memory()
    classifier = load(given.model, device=given.device)
    with TemporaryDirectory() as folder:
        picture = str(Path(folder) / "picture.png")
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (320, 320, 3), dtype=np.uint8)).save(picture)
        shallow, deep = (Invert(picture=picture, layers=(layer,), steps=LONG) for layer in ("blocks.2.1", "blocks.6.0"))
        texture = Texture(source=picture, scales=1, steps=LONG)
        side = classifier.spec.crop
        kinds = {
            "ascent, lucid": ascent(classifier, 1, "lucid"),
            "ascent, robust": ascent(classifier, 1, "robust"),
            "ascent, robust, 4 at once": ascent(classifier, 4, "robust"),
            "dream, 320 px": dream(classifier, picture),
            "inversion of blocks.2.1, a pass": by_pass(shallow, classifier, side, pools=False),
            "inversion of blocks.6.0, a pass": by_pass(deep, classifier, side, pools=False),
            "texture, a pass": by_pass(texture, classifier, 256, pools=True),
        }
        rows = [_row(name, *sides, repeats=given.repeats, device=given.device) for name, sides in kinds.items()]
        source = str(Path(folder) / "source.png")
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (192, 192, 3), dtype=np.uint8)).save(source)
        more = {"quilting 512 from 192, s": quilting(source), **memory(Ascent(classes=(1,), steps=LONG), classifier)}
    show(rows)
    print(more)
    write(
        given.out or RESULTS / f"synthesis-{given.device}.json",
        device=given.device,
        rows=rows,
        model=given.model,
        **more,
    )


def _row(name: str, step: Callable[[], Any], alone: Callable[[], Any], *, repeats: int, device: str) -> dict[str, Any]:
    seconds = interleaved({"step": step, "bare": alone}, repeats=repeats, device=device)
    ratio, low, high = ratios(seconds["step"], seconds["bare"])
    return {
        "work": name,
        "bare ms": 1000 * sorted(seconds["bare"])[len(seconds["bare"]) // 2],
        "step ms": 1000 * sorted(seconds["step"])[len(seconds["step"]) // 2],
        "step / bare": ratio,
        "quartiles": [low, high],
    }


if __name__ == "__main__":
    main()
