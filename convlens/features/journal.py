"""Batches on their way to disk: first the rows of features, then one line of the journal that says they are there.

A kill can leave half a line behind, or rows without a line. Both are cut off when a run resumes; the batch is made
again from its first image on, and comes out the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convlens.features.loader import EmbeddedBatch, LoadedImage, UnreadableImage
from convlens.features.row_files import Blob, RowFiles, RowLayout
from convlens.types import Activation, Floats
from convlens.utils.files import sync_file

JOURNAL = "journal.jsonl"
_NOT_FINITE = "its embedding is NaN or infinite; see the model's weights"


# A line of the journal holds the values of these classes as lists, in the order of their fields: keys would be repeated
# for every image.


@dataclass(frozen=True)
class ImageRow:
    """An image that has features; ``position`` is its place among all images, ``top1`` the most probable class.

    ``size`` is the file's in bytes, ``thumbnail`` that of its thumbnail, 0 where none is kept.
    """

    position: int
    id: str
    size: int
    sha256: str
    width: int
    height: int
    top1: int
    probability: float
    thumbnail: int = 0


@dataclass(frozen=True)
class Failure:
    """An image that has no features, and why."""

    position: int
    id: str
    reason: str


@dataclass(frozen=True)
class JournalEntry:
    """One batch. After it, the images before ``next`` are done, and ``total`` of them have a row each.

    ``thumbnail_bytes`` is the size of all their thumbnails.
    """

    next: int
    total: int
    dimensions: int
    rows: tuple[ImageRow, ...]
    failures: tuple[Failure, ...]
    thumbnail_bytes: int = 0

    def line(self) -> bytes:
        rows, failures = ([list(vars(value).values()) for value in values] for values in (self.rows, self.failures))
        values = [self.next, self.total, self.dimensions, rows, failures, self.thumbnail_bytes]
        return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


_START = JournalEntry(0, 0, 0, (), ())


def recover_journal(path: Path) -> JournalEntry:
    """The last whole entry, without its rows; the half line that a kill may leave behind it is cut off."""
    last, end = _START, 0
    if path.exists():
        for entry, size in _read(path):
            last, end = entry, end + size
        os.truncate(path, end)
    return JournalEntry(last.next, last.total, last.dimensions, (), (), last.thumbnail_bytes)


def read_journal(path: Path) -> Iterator[JournalEntry]:
    """All whole entries in order."""
    return (entry for entry, _ in _read(path))


def _read(path: Path) -> Iterator[tuple[JournalEntry, int]]:
    with path.open("rb") as file:
        for line in file:
            entry = _parse(line)
            if entry is None:
                return
            yield entry, len(line)


def _parse(line: bytes) -> JournalEntry | None:
    # Half a line can still be whole JSON: only the newline shows that it was written to its end.
    if not line.endswith(b"\n"):
        return None
    try:
        next, total, dimensions, rows, failures, thumbnail_bytes = json.loads(line)
        image_rows = tuple(ImageRow(*row) for row in rows)
        return JournalEntry(
            next, total, dimensions, image_rows, tuple(Failure(*failure) for failure in failures), thumbnail_bytes
        )
    except (ValueError, TypeError):
        return None


class Committer:
    """Takes batches in order and commits them together, at most every ``seconds``.

    Goes on behind the entry ``before``. Thumbnails go into the file ``blob``, one after the other, where it is given.
    """

    def __init__(
        self,
        folder: Path,
        layout: RowLayout,
        before: JournalEntry,
        *,
        activation: Activation | None = "softmax",
        seconds: float,
        blob: Path | None = None,
    ) -> None:
        """``activation`` makes probabilities of logits; None for a network without classes."""
        self._rows = RowFiles(folder, layout, rows=before.total, dimensions=before.dimensions)
        self._blob = Blob(blob, before.thumbnail_bytes) if blob else None
        self._journal = (folder / JOURNAL).open("ab")
        self._activation = activation
        self._last, self._seconds = before, seconds
        self._waiting: list[JournalEntry] = []
        self._committed = time.monotonic()

    def add(self, batch: EmbeddedBatch) -> int:
        """How many images are done after this batch; they are safe on disk after the next ``commit``."""
        finite_N = np.asarray(np.isfinite(batch.embeddings_ND).all(axis=1))
        self._last = _entry_after(self._last, batch, finite_N, self._activation)
        self._rows.append(batch.embeddings_ND[finite_N].astype(np.float32, copy=False))
        if self._blob:
            images = batch.images
            self._blob.append(b"".join(images[n].thumbnail for n in np.flatnonzero(finite_N)))
        self._waiting.append(self._last)
        # Each commit waits for the disk, so small batches share one.
        if time.monotonic() - self._committed >= self._seconds:
            self.commit()
        return self._last.next

    def commit(self) -> None:
        """Have everything that was added reach the disk."""
        self._rows.sync()
        if self._blob:
            self._blob.sync()
        # Only now: a line of the journal must never promise rows that a power cut can still take away.
        self._journal.writelines(entry.line() for entry in self._waiting)
        sync_file(self._journal)
        self._waiting.clear()
        self._committed = time.monotonic()

    def close(self) -> None:
        """Close the files without committing."""
        self._rows.close()
        if self._blob:
            self._blob.close()
        self._journal.close()


def _entry_after(
    before: JournalEntry, batch: EmbeddedBatch, finite_N: NDArray[np.bool_], activation: Activation | None
) -> JournalEntry:
    """The entry of a batch that begins where ``before`` ended; embeddings that are not finite become failures."""
    rows: list[ImageRow] = []
    failures: list[Failure] = []
    results = zip(batch.logits_NK, finite_N, strict=True)
    for position, outcome in enumerate(batch.outcomes, start=before.next):
        if isinstance(outcome, UnreadableImage):
            failures.append(Failure(position, outcome.id, outcome.reason))
            continue
        logits_K, finite = next(results)
        if finite:
            rows.append(_row(position, outcome, logits_K, activation))
        else:
            failures.append(Failure(position, outcome.id, _NOT_FINITE))
    return JournalEntry(
        before.next + len(batch.outcomes),
        before.total + len(rows),
        batch.embeddings_ND.shape[1] if len(finite_N) else before.dimensions,
        tuple(rows),
        tuple(failures),
        before.thumbnail_bytes + sum(row.thumbnail for row in rows),
    )


def _row(position: int, loaded: LoadedImage, logits_K: Floats, activation: Activation | None) -> ImageRow:
    top1 = -1 if activation is None else int(logits_K.argmax())
    return ImageRow(
        position,
        loaded.id,
        loaded.size,
        loaded.sha256,
        loaded.width,
        loaded.height,
        top1,
        0.0 if activation is None else float(np.float32(_largest(logits_K, activation))),  # the table keeps float32
        len(loaded.thumbnail),
    )


def _largest(logits_K: Floats, activation: Activation) -> float:
    """The probability of the largest logit."""
    if activation == "softmax":
        return float(1 / np.exp(np.asarray(logits_K, np.float64) - logits_K.max()).sum())  # exp cannot overflow
    largest = float(logits_K.max())
    return largest if activation == "none" else float(np.exp(-np.logaddexp(0.0, -largest)))
