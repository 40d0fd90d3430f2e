"""Image files to batches with their features, the next images being read while a batch is embedded."""

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

BATCH_SIZE = 16


@dataclass(frozen=True)
class LoadedImage:
    """``pixels`` is what the embedder takes: uint8 (H, W, C), or float32 (C, H, W) normalised.

    ``size`` (in bytes) and ``sha256`` are the file's, 0 and empty where there was none; ``width`` and ``height`` the
    upright image's. ``thumbnail`` is a JPEG, empty where none was wanted.
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
    """An image that has no features, and why."""

    id: str
    reason: str


Outcome = LoadedImage | UnreadableImage


@dataclass(frozen=True)
class ImageReader:
    """Reads images as one model takes them: normalised float32, or uint8 where the graph itself normalises.

    ``thumbnail_side`` is in pixels, 0 makes none. Safe to use from several threads; a call holds the file's bytes, the
    image at its full size and the result.
    """

    spec: ModelSpec
    normalised: bool
    thumbnail_side: int = 0

    def read_file(self, item: tuple[str, Path]) -> Outcome:
        """The image of an (id, path). Its hash is that of the very bytes that were decoded."""
        id, path = item
        try:
            # Read once and hashed from memory: the file may change between two reads.
            limits = image.file_limits(self.spec.channels)
            data = image.read_bytes(path, limits=limits)
            decoded = image.decode_channels(data, self.spec.channels, limits=limits)
            return self.prepare(id, decoded, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        except ImageError as error:
            return UnreadableImage(id, error.message.removeprefix(f"{path}: "))

    def prepare(self, id: str, decoded: image.Picture, *, size: int = 0, sha256: str = "") -> LoadedImage:
        """An image that is in memory already: RGB, or of the model's channels.

        ImageError for other channels, and for a deep image where a graph takes 8 bits.
        """
        view_HWC, _ = image.view(decoded, self.spec)
        if not self.normalised and view_HWC.dtype != np.uint8:
            raise ImageError("an image of more than 8 bits, and the graph takes uint8; export it without preprocessing")
        pixels = image.normalise(view_HWC, self.spec) if self.normalised else view_HWC
        thumbnail = b""
        if self.thumbnail_side:
            shown = Image.fromarray(image.display_image(decoded, self.spec))
            thumbnail = image.thumbnail(shown, side=self.thumbnail_side)
        return LoadedImage(id, pixels, decoded.width, decoded.height, size, sha256, thumbnail)


@dataclass(frozen=True)
class EmbeddedBatch:
    """Consecutive images, loaded or not; the loaded ones have a row each in logits (N, K) and embeddings (N, D)."""

    outcomes: tuple[Outcome, ...]
    logits_NK: Floats
    embeddings_ND: Floats

    @property
    def images(self) -> list[LoadedImage]:
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
    """All (id, file) in order, read by ``workers`` threads (default: one a core), at most two batches ahead."""
    reader = ImageReader(embedder.spec, not embedder.normalises, thumbnail_side)
    # Two batches keep the readers busy while one is embedded, and memory independent of the number of files.
    reading = ordered_map(reader.read_file, files, workers=workers or cores(), ahead=2 * batch)
    with contextlib.closing(reading) as outcomes:
        yield from embed_images(outcomes, embedder, batch=batch)


def embed_images(
    outcomes: Iterable[Outcome], embedder: Embedder, *, batch: int = BATCH_SIZE
) -> Iterator[EmbeddedBatch]:
    """Batches of ``batch`` loaded images; the last one may have fewer, or none where unreadable ones come last."""
    # Which images share a batch depends only on where it begins and on the files from there on. So a run that is
    # resumed at a batch's end makes the same batches, and with them the same last bits of float32.
    for group in _group(outcomes, batch):
        pixels = [outcome.pixels for outcome in group if isinstance(outcome, LoadedImage)]
        empty = np.empty((0, 0), np.float32)
        logits_NK, embeddings_ND = embedder.embed(np.stack(pixels)) if pixels else (empty, empty)
        yield EmbeddedBatch(tuple(group), logits_NK, embeddings_ND)


def _group(outcomes: Iterable[Outcome], batch: int) -> Iterator[list[Outcome]]:
    group: list[Outcome] = []
    loaded = 0
    for outcome in outcomes:
        group.append(outcome)
        loaded += isinstance(outcome, LoadedImage)
        if loaded == batch:
            yield group
            group, loaded = [], 0
    if group:
        yield group


def join_batches(batches: Iterable[EmbeddedBatch]) -> EmbeddedBatch:
    """All in one, without the images' pixels, which need not be sent once they are embedded."""
    parts = list(batches)
    outcomes = tuple(_without_pixels(outcome) for part in parts for outcome in part.outcomes)
    # A batch without a loaded image has arrays of shape (0, 0), which do not join with the others.
    embedded = [part for part in parts if len(part.embeddings_ND)] or parts[:1]
    return EmbeddedBatch(
        outcomes,
        np.concatenate([part.logits_NK for part in embedded]),
        np.concatenate([part.embeddings_ND for part in embedded]),
    )


def _without_pixels(outcome: Outcome) -> Outcome:
    return replace(outcome, pixels=np.empty(0, np.uint8)) if isinstance(outcome, LoadedImage) else outcome
