"""A picture file as an embedder takes it, or the reason why there is none.

Pictures in, features out, batch by batch, while the next pictures are being read.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convlens import image
from convlens.errors import ImageError
from convlens.features.embedder import Embedder
from convlens.types import Floats, ModelSpec
from convlens.utils.concurrency import cores, ordered_map


@dataclass(frozen=True)
class Ready:
    """``pixels`` is what the embedder takes: uint8 (H, W, C), or float32 (C, H, W) normalised.

    ``size`` (in bytes) and ``sha256`` are the file's, 0 and empty where there was none; ``width`` and ``height`` the
    upright picture's. ``thumbnail`` is a JPEG, empty where none was wanted.
    """

    id: str
    pixels: NDArray[Any]
    width: int
    height: int
    size: int = 0
    sha256: str = ""
    thumbnail: bytes = b""


@dataclass(frozen=True)
class Unreadable:
    """A picture that has no features, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Reader:
    """Makes pictures ready for one model. ``normalised`` on the host; else the graph does it, from uint8.

    ``thumbnail_side`` is in pixels, 0 makes none. Safe to use from several threads; only the file's bytes, one picture
    at its full size and the result are held by a call.
    """

    spec: ModelSpec
    normalised: bool
    thumbnail_side: int = 0

    def file(self, named: tuple[str, Path]) -> Ready | Unreadable:
        """(id, path) of a file. Its hash is that of the very bytes that were decoded."""
        id, path = named
        try:
            data = image.read_bytes(path)
            picture = image.decode(data)
        except ImageError as error:
            return Unreadable(id, error.message.removeprefix(f"{path}: "))
        return self.picture(id, picture, size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def picture(self, id: str, picture: Image.Image, *, size: int = 0, sha256: str = "") -> Ready:
        """An RGB picture that is in memory already."""
        view_HWC, _ = image.view(picture, self.spec)
        pixels = image.normalise(view_HWC, self.spec) if self.normalised else view_HWC
        small = image.thumbnail(picture, side=self.thumbnail_side) if self.thumbnail_side else b""
        return Ready(id, pixels, picture.width, picture.height, size, sha256, small)


BATCH = 16


@dataclass(frozen=True)
class Batch:
    """What became of some pictures in a row. ``pictures`` are the readable ones, with one row each of both arrays."""

    outcomes: tuple[Ready | Unreadable, ...]
    logits_NK: Floats
    embeddings_ND: Floats

    @property
    def pictures(self) -> list[Ready]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Ready)]

    @property
    def unreadable(self) -> list[Unreadable]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Unreadable)]


def embedded_files(
    files: Iterable[tuple[str, Path]],
    embedder: Embedder,
    *,
    batch: int = BATCH,
    workers: int | None = None,
    thumbnail_side: int = 0,
) -> Generator[Batch]:
    """All (id, file) in order, read by ``workers`` threads (default: one a core) two batches ahead at most."""
    reader = Reader(embedder.spec, not embedder.normalises, thumbnail_side)
    with contextlib.closing(ordered_map(reader.file, files, workers=workers or cores(), ahead=2 * batch)) as outcomes:
        yield from embedded(outcomes, embedder, batch=batch)


def joined(batches: Iterable[Batch]) -> Batch:
    """As one, without the pictures' pixels: what became of them is all that is still to be told."""
    every = list(batches)
    outcomes = tuple(_told(outcome) for each in every for outcome in each.outcomes)
    full = [each for each in every if len(each.embeddings_ND)]
    if not full:
        return Batch(outcomes, every[0].logits_NK, every[0].embeddings_ND)
    return Batch(
        outcomes,
        np.concatenate([each.logits_NK for each in full]),
        np.concatenate([each.embeddings_ND for each in full]),
    )


def _told(outcome: Ready | Unreadable) -> Ready | Unreadable:
    return replace(outcome, pixels=np.empty(0, np.uint8)) if isinstance(outcome, Ready) else outcome


def embedded(outcomes: Iterable[Ready | Unreadable], embedder: Embedder, *, batch: int = BATCH) -> Iterator[Batch]:
    """Batches of ``batch`` readable pictures; the last one may have fewer, or none where the unreadable come last.

    So what a batch is made of depends on where it begins and on the files from there on, on nothing that was before.
    """
    for group in _filled(outcomes, batch):
        pixels = [outcome.pixels for outcome in group if isinstance(outcome, Ready)]
        none = np.empty((0, 0), np.float32)
        logits_NK, embeddings_ND = embedder.embed(np.stack(pixels)) if pixels else (none, none)
        yield Batch(tuple(group), logits_NK, embeddings_ND)


def _filled(outcomes: Iterable[Ready | Unreadable], batch: int) -> Iterator[list[Ready | Unreadable]]:
    group: list[Ready | Unreadable] = []
    readable = 0
    for outcome in outcomes:
        group.append(outcome)
        readable += isinstance(outcome, Ready)
        if readable == batch:
            yield group
            group, readable = [], 0
    if group:
        yield group
