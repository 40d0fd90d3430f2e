"""What has been done for good: one JSON line a batch, written after its rows have reached the disk.

A kill can leave half a line behind, or rows without a line. Both are cut off when work goes on; then the batch is made
again from its first picture on, and comes out the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convlens.features.loader import EmbeddedBatch, LoadedImage, UnreadableImage
from convlens.features.row_files import Blob, RowFiles, RowLayout, flush
from convlens.types import Floats

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class ImageRow:
    """A picture that has features; ``position`` is its place among all pictures, ``top1`` the likeliest class.

    ``thumbnail`` is how many bytes its small picture has, 0 where none is kept.
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
    """A picture that has none."""

    position: int
    id: str
    reason: str


@dataclass(frozen=True)
class JournalEntry:
    """One batch. After it, the pictures before ``next`` are done, and ``total`` of them have a row each.

    ``thumbnail_bytes`` is what the small pictures of all of these come to.
    """

    next: int
    total: int
    dimensions: int
    rows: tuple[ImageRow, ...]
    failures: tuple[Failure, ...]
    thumbnail_bytes: int = 0

    def line(self) -> bytes:
        rows, failures = _plain(self.rows), _plain(self.failures)
        values = [self.next, self.total, self.dimensions, rows, failures, self.thumbnail_bytes]
        return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


NOTHING = JournalEntry(0, 0, 0, (), ())


def entry(
    before: JournalEntry, outcomes: Sequence[LoadedImage | UnreadableImage], logits_NK: Floats, embeddings_ND: Floats
) -> JournalEntry:
    """What a batch that begins where ``before`` ended has come to. An embedding that is not finite is a failure."""
    rows: list[ImageRow] = []
    failures: list[Failure] = []
    n = 0
    for position, outcome in enumerate(outcomes, start=before.next):
        if isinstance(outcome, UnreadableImage):
            failures.append(Failure(position, outcome.id, outcome.reason))
        elif not np.isfinite(embeddings_ND[n]).all():
            failures.append(Failure(position, outcome.id, "its embedding is NaN or infinite; see the model's weights"))
            n += 1
        else:
            rows.append(_row(position, outcome, logits_NK[n]))
            n += 1
    dimensions = embeddings_ND.shape[1] if n else before.dimensions
    small = before.thumbnail_bytes + sum(row.thumbnail for row in rows)
    done, total = before.next + len(outcomes), before.total + len(rows)
    return JournalEntry(done, total, dimensions, tuple(rows), tuple(failures), small)


def recover_journal(path: Path) -> JournalEntry:
    """The last whole entry, without its rows; what lies behind it is cut off."""
    last, end = NOTHING, 0
    if path.exists():
        for found, size in _read(path):
            last, end = found, end + size
        os.truncate(path, end)
    return JournalEntry(last.next, last.total, last.dimensions, (), (), last.thumbnail_bytes)


def read_journal(path: Path) -> Iterator[JournalEntry]:
    """All entries, one after the other."""
    return (found for found, _ in _read(path))


class Journal:
    """Grows line by line; what it says was true before it says so."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / JOURNAL).open("ab")

    def commit(self, entries: Sequence[JournalEntry]) -> None:
        self._file.writelines(entry.line() for entry in entries)
        flush(self._file)

    def close(self) -> None:
        self._file.close()


def _row(position: int, picture: LoadedImage, logits_K: Floats) -> ImageRow:
    shifted_K = np.asarray(logits_K, np.float64) - logits_K.max()
    top1 = int(shifted_K.argmax())
    probability = float(np.float32(1 / np.exp(shifted_K).sum()))
    size = picture.width, picture.height
    small = len(picture.thumbnail)
    return ImageRow(position, picture.id, picture.size, picture.sha256, *size, top1, probability, small)


def _plain(values: Sequence[ImageRow] | Sequence[Failure]) -> list[list[Any]]:
    return [list(vars(value).values()) for value in values]


def _read(path: Path) -> Iterator[tuple[JournalEntry, int]]:
    with path.open("rb") as file:
        for line in file:
            found = _parsed(line)
            if found is None:
                return
            yield found, len(line)


def _parsed(line: bytes) -> JournalEntry | None:
    if not line.endswith(b"\n"):
        return None
    try:
        next, total, dimensions, rows, failures, small = json.loads(line)
        return JournalEntry(
            next,
            total,
            dimensions,
            tuple(ImageRow(*row) for row in rows),
            tuple(Failure(*failure) for failure in failures),
            small,
        )
    except (ValueError, TypeError):
        return None


class Committer:
    """Takes batches in order and commits them together, at most every ``seconds``: flushing to disk takes time.

    The pictures' thumbnails go into ``blob``, where there is to be one, one after the other.
    """

    def __init__(
        self, folder: Path, layout: RowLayout, before: JournalEntry, *, seconds: float, blob: Path | None = None
    ) -> None:
        self._rows = RowFiles(folder, layout, rows=before.total, dimensions=before.dimensions)
        self._blob = Blob(blob, before.thumbnail_bytes) if blob else None
        self._journal = Journal(folder)
        self._last, self._seconds = before, seconds
        self._waiting: list[JournalEntry] = []
        self._committed = time.monotonic()

    def add(self, batch: EmbeddedBatch) -> int:
        """How many pictures are done with this batch."""
        self._last = entry(self._last, batch.outcomes, batch.logits_NK, batch.embeddings_ND)
        finite_N = np.isfinite(batch.embeddings_ND).all(axis=1)
        self._rows.append(batch.embeddings_ND[finite_N].astype(np.float32, copy=False))
        if self._blob:
            some = [batch.pictures[n].thumbnail for n in np.flatnonzero(finite_N)]
            self._blob.append(b"".join(some))
        self._waiting.append(self._last)
        if time.monotonic() - self._committed >= self._seconds:
            self.commit()
        return self._last.next

    def commit(self) -> None:
        """What was added so far stays, whatever happens from here on."""
        self._rows.sync()
        if self._blob:
            self._blob.sync()
        self._journal.commit(self._waiting)
        self._waiting.clear()
        self._committed = time.monotonic()

    def close(self) -> None:
        """Without committing."""
        self._rows.close()
        if self._blob:
            self._blob.close()
        self._journal.close()
