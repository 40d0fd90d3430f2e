"""From pictures to a gallery, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from convlens.bulk.batches import BATCH, Batch, embedded, embedded_files
from convlens.bulk.embedder import Embedder, open_embedder
from convlens.bulk.pictures import Reader, Ready
from convlens.errors import GalleryError
from convlens.gallery.entries import GalleryEntry
from convlens.gallery.features import FeatureSpace, flaws, require_space
from convlens.gallery.labels import LabelFrom, labels_of
from convlens.gallery.sources import picture_files
from convlens.gallery.store import Gallery
from convlens.gallery.writing import write
from convlens.models import Classifier
from convlens.types import Floats, ModelSpec

NamedPicture = tuple[str, str, Image.Image]
OnStep = Callable[[int, int | None], None]


def ignore(done: int, total: int | None) -> None:
    """The progress callback that does nothing; both count pictures, ``total`` is None where nobody knows."""


@dataclass(frozen=True)
class BuildReport:
    """``added`` pictures are in the gallery; ``unreadable`` holds (id, reason) of each that is not."""

    gallery: Gallery
    added: int
    unreadable: tuple[tuple[str, str], ...]


def build(
    pictures: Path | Sequence[Path],
    out: Path,
    classifier: Classifier,
    *,
    graph: Path | None = None,
    label_from: LabelFrom = "folder",
    feature_space: FeatureSpace = "unit",
    thumbnail_side: int = 96,
    batch: int = BATCH,
    workers: int | None = None,
    on_step: OnStep = ignore,
) -> BuildReport:
    """A gallery of all picture files below a folder (or of several files and folders), in the order of their ids.

    An id is the path relative to the folder, with forward slashes; its label the folder's part of that, or what the CSV
    table ``label_from`` says (columns file, label). A file that cannot be decoded is reported and skipped. Files are
    read by ``workers`` threads (default: one a core) while others are embedded: by the model, or by its ``graph``.
    ``thumbnail_side`` is in pixels, 0 keeps none; ``on_step`` gets the pictures done and how many there are. Raises
    GalleryError when no picture can be used, ModelError for a graph of another model, and as ``write`` does.
    """
    files = picture_files(pictures)
    labels = dict(zip(files, labels_of(list(files), label_from), strict=True))
    builder = _Builder(classifier.spec, feature_space, thumbnail_side, batch, on_step, len(files), labels)
    embedder = _embedder(classifier, graph, batch)
    builder.collect(
        embedded_files(files.items(), embedder, batch=batch, workers=workers, thumbnail_side=thumbnail_side)
    )
    return builder.report(out)


def build_from(
    pictures: Iterable[NamedPicture],
    out: Path,
    classifier: Classifier,
    *,
    graph: Path | None = None,
    feature_space: FeatureSpace = "unit",
    thumbnail_side: int = 96,
    batch: int = BATCH,
    on_step: OnStep = ignore,
) -> BuildReport:
    """A gallery of (id, label, RGB picture), in the order given; otherwise as ``build``."""
    total = len(pictures) if isinstance(pictures, Sequence) else None
    builder = _Builder(classifier.spec, feature_space, thumbnail_side, batch, on_step, total)
    embedder = _embedder(classifier, graph, batch)
    reader = Reader(embedder.spec, not embedder.normalises, thumbnail_side)
    builder.collect(embedded(builder.ready(pictures, reader), embedder, batch=batch))
    return builder.report(out)


def _embedder(classifier: Classifier, graph: Path | None, batch: int) -> Embedder:
    """Queries will come from the model itself, so a graph must see pictures as it does, and with the same digits."""
    embedder = open_embedder(classifier, graph, batch=batch)
    if embedder.spec != classifier.spec or embedder.precision != "float32":
        given = f"crop={embedder.spec.crop}, resize={embedder.spec.resize}, precision={embedder.precision}"
        raise GalleryError(
            f"{graph} ({given}) sees pictures otherwise than {classifier.spec.name} (crop={classifier.spec.crop}, "
            f"resize={classifier.spec.resize}, precision=float32), which will ask the gallery; export it without "
            "another size and without half"
        )
    return embedder


@dataclass
class _Builder:
    """Gathers entries and embeddings; nothing is written before all are there."""

    spec: ModelSpec
    space: FeatureSpace
    side: int
    batch: int
    on_step: OnStep
    total: int | None
    labels: dict[str, str] = field(default_factory=dict)
    entries: list[GalleryEntry] = field(default_factory=list)
    vectors: list[Floats] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_space(self.space)
        if self.batch < 1 or self.side < 0:
            raise GalleryError(f"batch={self.batch}, thumbnail_side={self.side}; use at least 1, and at least 0")

    def ready(self, pictures: Iterable[NamedPicture], reader: Reader) -> Iterator[Ready]:
        """Made ready one by one, so that never more than one picture is held at its full size."""
        for id, label, picture in pictures:
            self.labels[id] = label
            yield reader.picture(id, picture)

    def collect(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self.unreadable += [(each.id, each.reason) for each in batch.unreadable]
            self._add(batch.pictures, batch.embeddings_ND)
            self.on_step(len(self.entries) + len(self.unreadable), self.total)

    def report(self, out: Path) -> BuildReport:
        if not self.entries:
            reasons = "".join(f"; {id}: {reason}" for id, reason in self.unreadable[:3])
            raise GalleryError(f"none of {len(self.unreadable)} pictures could be used{reasons}")
        gallery = write(
            out,
            vectors_ND=np.stack(self.vectors),
            entries=self.entries,
            weights_sha256=self.spec.weights_sha256,
            model=self.spec.name,
            embedding_layer=self.spec.embedding_layer,
            feature_space=self.space,
        )
        return BuildReport(gallery, len(self.entries), tuple(self.unreadable))

    def _add(self, pictures: Sequence[Ready], embedding_ND: Floats) -> None:
        flawed = flaws(embedding_ND, self.space)
        for n, picture in enumerate(pictures):
            if n in flawed:
                self.unreadable.append((picture.id, f"its embedding is {flawed[n]}"))
            else:
                self.entries.append(GalleryEntry(picture.id, self.labels[picture.id], picture.thumbnail))
                self.vectors.append(embedding_ND[n])
