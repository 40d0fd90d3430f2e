"""Folders of small pictures, small networks to embed them with, and an extraction in a process that can be killed."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import nets
import numpy as np
import torch
from killable import Killable
from PIL import Image

from convlens.features.embedder import Embedder, torch_embedder
from convlens.features.extract import Extraction, extract
from convlens.features.image_list import find_images
from convlens.gallery import builder
from convlens.models import Classifier

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]


def mixed(seed: int = 0) -> Classifier:
    """Convolutions, norms and clipping, for pictures of 12 px; other seeds are other weights."""
    torch.manual_seed(seed)
    found = nets.classifier(nets.Mixed(), classes=4, crop=12)
    found.spec.__dict__["weights_sha256"] = f"{seed:064d}"
    return found


def photographs(folder: Path, count: int, *, broken: tuple[int, ...] = ()) -> Path:
    """JPEG files of noise, of many sizes, in three folders in turn; those whose number is in ``broken`` are none."""
    chance = np.random.default_rng(0)
    for number in range(count):
        path = folder / "abc"[number % 3] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = chance.integers(12, 40, 2)
        Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        if number in broken:
            path.write_bytes(b"<html> not a picture")
    return folder


def extraction(folder: Path, out: Path, embedder: Embedder | None = None, **options: Any) -> Extraction:
    """Of batches of four and committed batch by batch, unless said otherwise."""
    given = {"batch": 4, "commit_seconds": 0.0, **options}
    return extract(find_images([folder]), out, embedder or torch_embedder(mixed(), batch=given["batch"]), **given)


class Interrupted(Exception):
    """What ``interrupted`` raises inside an extraction; no library knows it."""


def interrupted(folder: Path, out: Path, *, after: int, **options: Any) -> None:
    """An extraction that breaks off once ``after`` pictures are done."""

    def stop(done: int, _: int) -> None:
        if done >= after:
            raise Interrupted

    try:
        extraction(folder, out, **options, on_step=stop)
    except Interrupted:
        return
    raise RuntimeError(f"it was over before {after} pictures were done")


def contents(folder: Path) -> dict[str, bytes]:
    """All files, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_a_process(folder: Path, out: Path, format: str, seconds_a_step: float) -> Killable:
    """Runs ``_counting``; what it prints can be read line by line."""
    return Killable(_counting, folder, out, format, seconds_a_step)


def _counting(folder: Path, out: Path, format: str, seconds_a_step: float) -> None:
    """An extraction that prints how many pictures are done, and takes its time."""
    torch.set_num_threads(2)

    def tell(done: int, _: int) -> None:
        sys.stdout.write(f"{done}\n")
        time.sleep(seconds_a_step)

    found = extraction(folder, out, format=format, shard_rows=7, on_step=tell)
    sys.stdout.write(f"resumed {found.resumed}\n")


def build_batch_by_batch(folder: Path, gallery: Path, threads: int) -> None:
    """Prints how many pictures are done, each batch of which may be the last before a kill, and "built" at the end."""
    torch.set_num_threads(threads)
    builder.extract = partial(builder.extract, commit_seconds=0.0)
    builder.build(folder, gallery, mixed(), batch=4, on_step=lambda done, _: sys.stdout.write(f"{done}\n"))
    sys.stdout.write("built\n")
