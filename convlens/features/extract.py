"""From pictures to a folder of features that a kill cannot hurt."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from convlens.errors import ConvLensError, RequestError
from convlens.features.embedder import Embedder
from convlens.features.journal import JOURNAL, Committer, Failure, JournalEntry, read_journal, recover_journal
from convlens.features.loader import BATCH_SIZE, EmbeddedBatch, embed_files
from convlens.features.output_dir import (
    MANIFEST,
    PARTIAL,
    discard,
    finish,
    held,
    is_complete,
    manifest,
    resume_or_create,
    settings,
)
from convlens.features.row_files import SHARD_ROWS, Format, RowLayout, fill_headers, row_layout
from convlens.features.tables import ROWS, THUMBNAILS, UNREADABLE, read_failures, write_tables
from convlens.types import no_op

OnStep = Callable[[int, int], None]


class Spread(Protocol):
    """Several processes that embed parts of the list, ``part`` pictures each."""

    part: int

    def batches(
        self, files: Iterable[tuple[str, Path]], *, batch: int, thumbnail_side: int
    ) -> Generator[EmbeddedBatch]:
        """One for each part of the files, in their order."""


@dataclass(frozen=True)
class Extraction:
    """``rows`` pictures have features of ``dimensions`` numbers; ``resumed`` pictures were done by an earlier run."""

    folder: Path
    rows: int
    dimensions: int
    resumed: int
    unreadable: tuple[Failure, ...]


def extract(
    files: Mapping[str, Path],
    out: Path,
    embedder: Embedder,
    *,
    format: Format = "npy",
    batch: int = BATCH_SIZE,
    workers: int | None = None,
    overwrite: bool = False,
    shard_rows: int = SHARD_ROWS,
    commit_seconds: float = 1.0,
    thumbnail_side: int = 0,
    reuse: bool = False,
    spread: Spread | None = None,
    on_step: OnStep = no_op,
) -> Extraction:
    """The features of all pictures, in their order, as float32 files with a table of what each row is.

    Killed at any moment and called again, it goes on where it was, losing at most ``commit_seconds`` of work, and ends
    with the very bytes that one run would have written. What cannot be read is listed with the reason and left out.
    With ``thumbnail_side`` (in pixels) small pictures are kept beside, as JPEG one after the other; with ``reuse`` a
    finished folder of these very settings is taken as it is. ``spread`` has other processes do the work.
    Raises RequestError where ``out`` is finished, was begun with other settings or holds other things, and when no
    picture can be used; ConvLensError where the disk refuses, after which it can go on as well.
    """
    if batch < 1 or shard_rows < 1 or (workers is not None and workers < 1):
        raise RequestError(f"batch={batch}, workers={workers}, shard_rows={shard_rows}; use 1 or more of each")
    made = row_layout(format, shard_rows=shard_rows)
    job = _Job(files, out, embedder, made, batch, workers, commit_seconds, thumbnail_side, on_step, spread)
    asked = settings(files, embedder, format=format, batch=batch, thumbnail_side=thumbnail_side)
    asked |= {"shard_rows": job.layout.rows}
    if spread is not None:  # batches end where a part of the list ends, which is a matter of the last bits
        asked |= {"part": spread.part}
    try:
        with held(out):
            if reuse and is_complete(out, asked):
                on_step(len(files), len(files))
                return job.found()
            resumed = recover_journal(resume_or_create(out, asked, overwrite=overwrite) / JOURNAL)
            on_step(resumed.next, len(files))
            if resumed.next < len(files):
                job.go_on(resumed)
            return job.finish(asked, resumed.next)
    except OSError as error:
        raise ConvLensError(
            f"{out} cannot be written ({error.strerror or error}); make room, or choose another folder. What was done "
            "so far stays, and the same command goes on from there"
        ) from error


@dataclass(frozen=True)
class _Job:
    files: Mapping[str, Path]
    out: Path
    embedder: Embedder
    layout: RowLayout
    batch: int
    workers: int | None
    commit_seconds: float
    thumbnail_side: int
    on_step: OnStep
    spread: Spread | None = None

    @property
    def partial(self) -> Path:
        return self.out / PARTIAL

    def go_on(self, resumed: JournalEntry) -> None:
        """Embed and commit everything behind what is done."""
        remaining = itertools.islice(self.files.items(), resumed.next, None)
        batches = self._batches(remaining)
        blob = self.partial / THUMBNAILS if self.thumbnail_side else None
        committer = Committer(self.partial, self.layout, resumed, seconds=self.commit_seconds, blob=blob)
        with contextlib.closing(committer), contextlib.closing(batches):
            for each in batches:
                self.on_step(committer.add(each), len(self.files))
            committer.commit()

    def _batches(self, files: Iterable[tuple[str, Path]]) -> Generator[EmbeddedBatch]:
        if self.spread is not None:
            return self.spread.batches(files, batch=self.batch, thumbnail_side=self.thumbnail_side)
        return embed_files(
            files, self.embedder, batch=self.batch, workers=self.workers, thumbnail_side=self.thumbnail_side
        )

    def finish(self, asked: Mapping[str, Any], resumed: int) -> Extraction:
        """Headers, tables and the manifest, from the journal alone; may be repeated after a kill."""
        last = recover_journal(self.partial / JOURNAL)
        failures = tuple(failure for each in read_journal(self.partial / JOURNAL) for failure in each.failures)
        if not last.total:
            self._refuse(failures)
        fill_headers(self.partial, self.layout, rows=last.total, dimensions=last.dimensions)
        small = bool(self.thumbnail_side)
        write_tables(self.partial, self.partial / JOURNAL, self.layout, self.embedder.spec.labels, thumbnails=small)
        features = [self.layout.file_name(number) for number, _ in enumerate(self.layout.counts(last.total))]
        names = [*features, ROWS, UNREADABLE, *([THUMBNAILS] if small else [])]
        finish(self.out, names, manifest(asked, last, names, (self.partial, self.out)))
        return Extraction(self.out, last.total, last.dimensions, resumed, failures)

    def found(self) -> Extraction:
        """A finished folder, as the run that made it would have told of it."""
        rows = json.loads((self.out / MANIFEST).read_bytes())
        failures = tuple(Failure(0, id, reason) for id, reason in read_failures(self.out))
        return Extraction(self.out, rows["rows"], rows["dimensions"], len(self.files), failures)

    def _refuse(self, failures: Sequence[Failure]) -> NoReturn:
        discard(self.partial)
        with contextlib.suppress(OSError):  # where an older result lies, it stays
            self.out.rmdir()
        reasons = "".join(f"; {failure.id}: {failure.reason}" for failure in failures[:3])
        raise RequestError(f"none of {len(failures)} pictures could be used{reasons}")
