"""From images to a folder of features that a kill cannot hurt."""

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
    exclusive_output_dir,
    is_complete,
    publish,
    resume_or_create,
    run_settings,
)
from convlens.features.row_files import SHARD_ROWS, Format, RowLayout, fill_headers, row_layout
from convlens.features.tables import ROWS, THUMBNAILS, UNREADABLE, read_failures, write_tables
from convlens.types import no_op
from convlens.utils.interrupts import deferred_interrupts

OnStep = Callable[[int, int], None]


class EmbeddingCluster(Protocol):
    """Other processes that embed the files, ``part`` of them at a time."""

    part: int

    def embed_files(
        self, files: Iterable[tuple[str, Path]], *, batch: int, thumbnail_side: int
    ) -> Generator[EmbeddedBatch]:
        """A batch for each part of the files, in their order."""


@dataclass(frozen=True)
class Extraction:
    """``rows`` images have features of ``dimensions`` values; ``resumed`` images were done by an earlier run."""

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
    cluster: EmbeddingCluster | None = None,
    on_step: OnStep = no_op,
) -> Extraction:
    """Write the features of all images, in their order, as float32 files with a table of what each row is.

    Killed at any moment and called again, it resumes, losing at most ``commit_seconds`` of work, and ends with the very
    bytes that one run would have written. Ctrl-C and SIGTERM act after the batch that is under way and lose nothing.
    Images that cannot be read are listed with the reason and left out. With ``thumbnail_side`` (in pixels) thumbnails
    are kept beside the features, as JPEG one after the other; with ``reuse`` a complete folder of these very settings
    is returned as it is. ``on_step`` is called with the images done and their number, at the start and after each
    batch. Raises RequestError where ``out`` is complete, was begun with other settings or holds other things, and where
    no image can be used; ConvLensError where the disk refuses, after which the same call resumes as well.
    """
    # All that can be refused is refused before the folder is touched.
    if batch < 1 or shard_rows < 1 or (workers is not None and workers < 1):
        raise RequestError(f"batch={batch}, workers={workers}, shard_rows={shard_rows}; use 1 or more of each")
    layout = row_layout(format, shard_rows=shard_rows)
    settings = run_settings(
        files,
        embedder,
        format=format,
        batch=batch,
        thumbnail_side=thumbnail_side,
        shard_rows=layout.rows,
        part=cluster.part if cluster else None,
    )
    run = _Run(files, out, embedder, layout, batch, workers, commit_seconds, thumbnail_side, on_step, cluster)
    try:
        with exclusive_output_dir(out):
            if reuse and is_complete(out, settings):
                on_step(len(files), len(files))
                return run.read_result()
            last = recover_journal(resume_or_create(out, settings, overwrite=overwrite) / JOURNAL)
            on_step(last.next, len(files))
            if last.next < len(files):
                run.embed_from(last)
            return run.finish(settings, last.next)
    # A full disk shows only when something is written, which may be anywhere above.
    except OSError as error:
        raise ConvLensError(
            f"{out} cannot be written ({error.strerror or error}); make room, or choose another folder. What was done "
            "so far stays, and the same command goes on from there"
        ) from error


@dataclass(frozen=True)
class _Run:
    files: Mapping[str, Path]
    out: Path
    embedder: Embedder
    layout: RowLayout
    batch: int
    workers: int | None
    commit_seconds: float
    thumbnail_side: int
    on_step: OnStep
    cluster: EmbeddingCluster | None

    @property
    def partial(self) -> Path:
        return self.out / PARTIAL

    def embed_from(self, last: JournalEntry) -> None:
        """Embed and commit all images behind the last entry of the journal."""
        batches = self._batches(itertools.islice(self.files.items(), last.next, None))
        blob = self.partial / THUMBNAILS if self.thumbnail_side else None
        # Closed after an exception too: the reading threads end, and what was not committed is cut off by the next run.
        spec = self.embedder.spec
        activation = spec.activation if spec.classes else None
        committer = Committer(
            self.partial, self.layout, last, activation=activation, seconds=self.commit_seconds, blob=blob
        )
        with contextlib.closing(committer), contextlib.closing(batches), deferred_interrupts() as interruption:
            for batch in batches:
                self.on_step(committer.add(batch), len(self.files))
                if interruption.received:
                    break
            committer.commit()
        interruption.deliver()

    def _batches(self, files: Iterable[tuple[str, Path]]) -> Generator[EmbeddedBatch]:
        side = self.thumbnail_side
        if self.cluster is not None:
            return self.cluster.embed_files(files, batch=self.batch, thumbnail_side=side)
        return embed_files(files, self.embedder, batch=self.batch, workers=self.workers, thumbnail_side=side)

    def finish(self, settings: Mapping[str, Any], resumed: int) -> Extraction:
        """Write headers, tables and the manifest, from the journal alone; may be repeated after a kill."""
        journal, labels, thumbnails = self.partial / JOURNAL, self.embedder.spec.labels, bool(self.thumbnail_side)
        # Never from memory: the rows may have been made by several runs, and a list of millions need not fit into it.
        last = recover_journal(journal)
        failures = tuple(failure for entry in read_journal(journal) for failure in entry.failures)
        if not last.total:
            self._refuse(failures)
        fill_headers(self.partial, self.layout, rows=last.total, dimensions=last.dimensions)
        write_tables(self.partial, journal, self.layout, labels, thumbnails=thumbnails)
        features = [self.layout.file_name(number) for number, _ in enumerate(self.layout.counts(last.total))]
        names = [*features, ROWS, UNREADABLE, *([THUMBNAILS] if thumbnails else [])]
        publish(self.out, names, settings, last)
        return Extraction(self.out, last.total, last.dimensions, resumed, failures)

    def read_result(self) -> Extraction:
        """What the run that completed the folder returned, with all images as resumed."""
        manifest = json.loads((self.out / MANIFEST).read_bytes())
        failures = tuple(Failure(0, id, reason) for id, reason in read_failures(self.out))
        return Extraction(self.out, manifest["rows"], manifest["dimensions"], len(self.files), failures)

    def _refuse(self, failures: Sequence[Failure]) -> NoReturn:
        discard(self.partial)
        with contextlib.suppress(OSError):  # an older result in the folder stays
            self.out.rmdir()
        reasons = "".join(f"; {failure.id}: {failure.reason}" for failure in failures[:3])
        raise RequestError(f"none of {len(failures)} images could be used{reasons}")
