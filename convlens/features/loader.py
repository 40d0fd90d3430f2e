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
class LoadedImage:
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
class UnreadableImage:
    """A picture that has no features, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class ImageReader:
    """Makes pictures ready for one model. ``normalised`` on the host; else the graph does it, from uint8.

    ``thumbnail_side`` is in pixels, 0 makes none. Safe to use from several threads; only the file's bytes, one picture
    at its full size and the result are held by a call.
    """

    spec: ModelSpec
    normalised: bool
    thumbnail_side: int = 0

    def read_file(self, named: tuple[str, Path]) -> LoadedImage | UnreadableImage:
        """(id, path) of a file. Its hash is that of the very bytes that were decoded."""
        id, path = named
        try:
            data = image.read_bytes(path)
            picture = image.decode(data)
        except ImageError as error:
            return UnreadableImage(id, error.message.removeprefix(f"{path}: "))
        return self.prepare(id, picture, size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def prepare(self, id: str, picture: Image.Image, *, size: int = 0, sha256: str = "") -> LoadedImage:
        """An RGB picture that is in memory already."""
        view_HWC, _ = image.view(picture, self.spec)
        pixels = image.normalise(view_HWC, self.spec) if self.normalised else view_HWC
        small = image.thumbnail(picture, side=self.thumbnail_side) if self.thumbnail_side else b""
        return LoadedImage(id, pixels, picture.width, picture.height, size, sha256, small)


BATCH_SIZE = 16


@dataclass(frozen=True)
class EmbeddedBatch:
    """What became of some pictures in a row. ``pictures`` are the readable ones, with one row each of both arrays."""

    outcomes: tuple[LoadedImage | UnreadableImage, ...]
    logits_NK: Floats
    embeddings_ND: Floats

    @property
    def pictures(self) -> list[LoadedImage]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, LoadedImage)]

    @property
    def unreadable(self) -> list[UnreadableImage]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, UnreadableImage)]


def embed_files(
    files: Iterable[tuple[str, Path]],
    embedder: Embedder,
    *,
    batch: int = BATCH_SIZE,
    workers: int | None = None,
    thumbnail_side: int = 0,
) -> Generator[EmbeddedBatch]:
    """All (id, file) in order, read by ``workers`` threads (default: one a core) two batches ahead at most."""
    reader = ImageReader(embedder.spec, not embedder.normalises, thumbnail_side)
    with contextlib.closing(
        ordered_map(reader.read_file, files, workers=workers or cores(), ahead=2 * batch)
    ) as outcomes:
        yield from embedded(outcomes, embedder, batch=batch)


def join_batches(batches: Iterable[EmbeddedBatch]) -> EmbeddedBatch:
    """As one, without the pictures' pixels: what became of them is all that is still to be told."""
    every = list(batches)
    outcomes = tuple(_told(outcome) for each in every for outcome in each.outcomes)
    full = [each for each in every if len(each.embeddings_ND)]
    if not full:
        return EmbeddedBatch(outcomes, every[0].logits_NK, every[0].embeddings_ND)
    return EmbeddedBatch(
        outcomes,
        np.concatenate([each.logits_NK for each in full]),
        np.concatenate([each.embeddings_ND for each in full]),
    )


def _told(outcome: LoadedImage | UnreadableImage) -> LoadedImage | UnreadableImage:
    return replace(outcome, pixels=np.empty(0, np.uint8)) if isinstance(outcome, LoadedImage) else outcome


def embedded(
    outcomes: Iterable[LoadedImage | UnreadableImage], embedder: Embedder, *, batch: int = BATCH_SIZE
) -> Iterator[EmbeddedBatch]:
    """Batches of ``batch`` readable pictures; the last one may have fewer, or none where the unreadable come last.

    So what a batch is made of depends on where it begins and on the files from there on, on nothing that was before.
    """
    for group in _filled(outcomes, batch):
        pixels = [outcome.pixels for outcome in group if isinstance(outcome, LoadedImage)]
        none = np.empty((0, 0), np.float32)
        logits_NK, embeddings_ND = embedder.embed(np.stack(pixels)) if pixels else (none, none)
        yield EmbeddedBatch(tuple(group), logits_NK, embeddings_ND)


def _filled(
    outcomes: Iterable[LoadedImage | UnreadableImage], batch: int
) -> Iterator[list[LoadedImage | UnreadableImage]]:
    group: list[LoadedImage | UnreadableImage] = []
    readable = 0
    for outcome in outcomes:
        group.append(outcome)
        readable += isinstance(outcome, LoadedImage)
        if readable == batch:
            yield group
            group, readable = [], 0
    if group:
        yield group
