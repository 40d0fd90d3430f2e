"""From pictures to a gallery, in batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from convlens.errors import GalleryError, ImageError
from convlens.gallery.entries import GalleryEntry
from convlens.gallery.features import FeatureSpace, flaws, require_space
from convlens.gallery.labels import LabelFrom, labels_of
from convlens.gallery.sources import picture_files
from convlens.gallery.store import Gallery
from convlens.gallery.writing import write
from convlens.image import prepare, read, thumbnail
from convlens.models import Classifier
from convlens.runtime.torch_ import TorchRuntime
from convlens.types import Floats

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
    label_from: LabelFrom = "folder",
    feature_space: FeatureSpace = "unit",
    thumbnail_side: int = 96,
    batch: int = 16,
    on_step: OnStep = ignore,
) -> BuildReport:
    """A gallery of all picture files below a folder (or of several files and folders), in the order of their ids.

    An id is the path relative to the folder, with forward slashes; its label the folder's part of that, or what the CSV
    table ``label_from`` says (columns file, label). A file that cannot be decoded is reported and skipped.
    ``thumbnail_side`` is in pixels, 0 keeps none; ``on_step`` gets the pictures done and how many there are. Raises
    GalleryError when no picture can be used, and as ``write`` does.
    """
    files = picture_files(pictures)
    labels = dict(zip(files, labels_of(list(files), label_from), strict=True))
    builder = _Builder(classifier, feature_space, thumbnail_side, batch, on_step, total=len(files))
    builder.collect(builder.decoded(files, labels))
    return builder.report(out)


def build_from(
    pictures: Iterable[NamedPicture],
    out: Path,
    classifier: Classifier,
    *,
    feature_space: FeatureSpace = "unit",
    thumbnail_side: int = 96,
    batch: int = 16,
    on_step: OnStep = ignore,
) -> BuildReport:
    """A gallery of (id, label, RGB picture), in the order given; otherwise as ``build``."""
    total = len(pictures) if isinstance(pictures, Sequence) else None
    builder = _Builder(classifier, feature_space, thumbnail_side, batch, on_step, total)
    builder.collect(pictures)
    return builder.report(out)


@dataclass
class _Builder:
    """Gathers entries and embeddings; nothing is written before all are there."""

    classifier: Classifier
    space: FeatureSpace
    side: int
    batch: int
    on_step: OnStep
    total: int | None
    entries: list[GalleryEntry] = field(default_factory=list)
    vectors: list[Floats] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_space(self.space)
        if self.batch < 1 or self.side < 0:
            raise GalleryError(f"batch={self.batch}, thumbnail_side={self.side}; use at least 1, and at least 0")

    def decoded(self, files: Mapping[str, Path], labels: Mapping[str, str]) -> Iterator[NamedPicture]:
        for id, path in files.items():
            try:
                picture = read(path)
            except ImageError as error:
                self.unreadable.append((id, error.message))
                continue
            yield id, labels[id], picture

    def collect(self, pictures: Iterable[NamedPicture]) -> None:
        runtime = TorchRuntime(
            self.classifier.module, self.classifier.spec.embedding_layer, self.classifier.device, batch=self.batch
        )
        # Prepared one by one, so that never more than one picture is held at its full size.
        ready = map(self._prepared, pictures)
        while chunk := list(itertools.islice(ready, self.batch)):
            _, embedding_ND = runtime.logits_and_embeddings(np.stack([x_CHW for _, x_CHW in chunk]))
            self._add([entry for entry, _ in chunk], embedding_ND)
            self.on_step(len(self.entries) + len(self.unreadable), self.total)

    def report(self, out: Path) -> BuildReport:
        if not self.entries:
            reasons = "".join(f"; {id}: {reason}" for id, reason in self.unreadable[:3])
            raise GalleryError(f"none of {len(self.unreadable)} pictures could be used{reasons}")
        spec = self.classifier.spec
        gallery = write(
            out,
            vectors_ND=np.stack(self.vectors),
            entries=self.entries,
            weights_sha256=spec.weights_sha256,
            model=spec.name,
            embedding_layer=spec.embedding_layer,
            feature_space=self.space,
        )
        return BuildReport(gallery, len(self.entries), tuple(self.unreadable))

    def _prepared(self, named: NamedPicture) -> tuple[GalleryEntry, Floats]:
        id, label, picture = named
        small = thumbnail(picture, side=self.side) if self.side else b""
        return GalleryEntry(id, label, small), prepare(picture, self.classifier.spec).x_CHW

    def _add(self, entries: Sequence[GalleryEntry], embedding_ND: Floats) -> None:
        flawed = flaws(embedding_ND, self.space)
        for n, entry in enumerate(entries):
            if n in flawed:
                self.unreadable.append((entry.id, f"its embedding is {flawed[n]}"))
            else:
                self.entries.append(entry)
                self.vectors.append(embedding_ND[n])
