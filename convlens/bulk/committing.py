"""Batches on their way to the disk: first the rows, then the line that says they are there."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from convlens.bulk.appending import Blob, RowFiles
from convlens.bulk.batches import Batch
from convlens.bulk.journal import Entry, Journal, entry
from convlens.bulk.layouts import Layout


class Committer:
    """Takes batches in order and commits them together, at most every ``seconds``: flushing to disk takes time.

    The pictures' thumbnails go into ``blob``, where there is to be one, one after the other.
    """

    def __init__(
        self, folder: Path, layout: Layout, before: Entry, *, seconds: float, blob: Path | None = None
    ) -> None:
        self._rows = RowFiles(folder, layout, rows=before.total, dimensions=before.dimensions)
        self._blob = Blob(blob, before.thumbnail_bytes) if blob else None
        self._journal = Journal(folder)
        self._last, self._seconds = before, seconds
        self._waiting: list[Entry] = []
        self._committed = time.monotonic()

    def add(self, batch: Batch) -> int:
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
