"""Whether pictures made by ascent are about the class, or about the network: an independent one looks at them.

    python benchmarks/ascent_transfer.py --judge "torchvision:squeezenet1_0?weights=FILE&size=227&resize=256"

Twenty classes, chosen beforehand: the eight of Olah-style trials that are known to be hard or easy, and every
eightieth class from 40. Each gets a picture from the maker, which never sees the judge; pictures are rounded to
8 bits, and the judge sees them as it sees any picture. Ranks are out of all classes.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from PIL import Image
from table import RESULTS, show, write

from convlens import image, load
from convlens.models import Classifier
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.synth.gradient_ascent import Ascent
from convlens.types import Bytes8

CLASSES = (386, 967, 105, 1, 340, 207, 417, 573, *range(40, 1000, 80))


def rank(judge: Classifier, picture: Bytes8, index: int) -> int:
    x_CHW = image.prepare(Image.fromarray(picture), judge.spec).x_CHW
    with torch.no_grad():
        (logits_K,) = judge.module(torch.as_tensor(x_CHW)[None].to(judge.device))
    return int((logits_K > logits_K[index]).sum())


def default_judge() -> str:
    weights = Path(os.environ.get("CONVLENS_TEST_DATA", ".")) / "weights" / "squeezenet1_0-imagenet.safetensors"
    return f"torchvision:squeezenet1_0?weights={weights}&size=227&resize=256"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--maker", default="packaged:efficientnet_lite0")
    parser.add_argument("--judge", default="", help="default: SqueezeNet with the weights of CONVLENS_TEST_DATA")
    parser.add_argument("--presets", nargs="+", default=["robust"])
    parser.add_argument("--pictures", type=Path, help="a folder to keep the pictures in")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    keep_freed_memory()
    maker, judge = load(given.maker, device=given.device), load(given.judge or default_judge(), device=given.device)
    rows = [row for preset in given.presets for row in made(maker, judge, preset, given.pictures)]
    show(rows)
    for preset in given.presets:
        ranks = [row["judge's rank"] for row in rows if row["preset"] == preset]
        near, nearer = sum(one < 20 for one in ranks), sum(one < 5 for one in ranks)
        print(f"{preset}: of {len(ranks)} the judge ranks {near} in its first 20, {nearer} in its first 5")
    write(
        given.out or RESULTS / f"ascent_transfer-{given.device}.json",
        device=given.device,
        rows=rows,
        judge=judge.spec.name,
    )


def made(maker: Classifier, judge: Classifier, preset: str, folder: Path | None) -> list[dict[str, object]]:
    work = Ascent(classes=CLASSES, preset=preset).begin(maker)
    started = time.perf_counter()
    while work.done < work.total:
        work.step()
    seconds = time.perf_counter() - started
    outcome = work.finish()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(outcome.figures["sheet"]).save(folder / f"{preset}.png")
    return [
        {
            "preset": preset,
            "class": target["name"],
            "maker's probability": target["probability"],
            "judge's rank": rank(judge, picture, target["index"]),
            "steps": work.total,
            "seconds a picture": seconds / len(CLASSES),
        }
        for target, picture in zip(outcome.facts["targets"], outcome.images.values(), strict=True)
    ]


if __name__ == "__main__":
    main()
