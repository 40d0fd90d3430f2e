"""Pictures in, features out, batch by batch, while the next pictures are being read."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convlens.bulk.ahead import cores, in_order
from convlens.bulk.embedder import Embedder
from convlens.bulk.pictures import Reader, Ready, Unreadable
from convlens.types import Floats

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
    with contextlib.closing(in_order(reader.file, files, workers=workers or cores(), ahead=2 * batch)) as outcomes:
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
