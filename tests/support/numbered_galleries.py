"""Galleries that a process writes one after another until it is killed; imports no torch, since many are started."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from convlens.gallery import GalleryEntry, write


def write_numbered(folder: Path, number: int) -> None:
    """A gallery of vectors that all hold the gallery's own number."""
    entries = [GalleryEntry(f"{number}/{n}", str(number), b"%d" % number * 50) for n in range(1000)]
    write(
        folder,
        vectors_ND=np.full((1000, 256), float(number)),
        entries=entries,
        weights_sha256="0" * 64,
        model=f"number {number}",
        embedding_layer="head",
        feature_space="raw",
    )


def write_forever(folder: Path, first: int) -> None:
    """Prints the number of each gallery that is written."""
    for number in range(first, 1_000_000):
        write_numbered(folder, number)
        sys.stdout.write(f"{number}\n")
