"""A finished extraction as the parts of a gallery, a chunk at a time.

From pictures to a gallery, in batches.

Which picture files a folder or a list of paths means, in a gallery's words.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convlens.errors import GalleryError, RequestError
from convlens.features import image_list
from convlens.features.embedder import Embedder, open_embedder
from convlens.features.extract import extract
from convlens.features.loader import BATCH_SIZE, EmbeddedBatch, ImageReader, LoadedImage, embedded
from convlens.features.tables import THUMBNAILS, read_rows
from convlens.gallery.entries import GalleryEntry, LabelFrom, labels_of
from convlens.gallery.gallery import Gallery
from convlens.gallery.index import IndexChoice, kind_for
from convlens.gallery.vectors import FeatureSpace, flaws, require_space, to_feature_space
from convlens.gallery.versions import require_ours
from convlens.gallery.writer import EmbeddingSource, Part, write, write_parts
from convlens.models import Classifier
from convlens.types import Floats, ModelSpec, no_op
from convlens.utils.concurrency import batched

_ROWS_AT_ONCE = 4096
FEATURES = "features.npy"


@dataclass(frozen=True)
class Extracted:
    """What an extraction holds that a gallery can use; ``flawed`` are (id, reason) of the rows that it cannot."""

    folder: Path
    space: FeatureSpace
    count: int
    dimensions: int
    flawed: tuple[tuple[str, str], ...]

    def parts(self, label_of: Callable[[str], str]) -> Iterator[Part]:
        """Usable rows in their order."""
        with (self.folder / THUMBNAILS).open("rb") if self._small else contextlib.nullcontext() as thumbnails:
            for names, vectors_BD, lengths in _chunks(self.folder, self._small):
                bad = flaws(vectors_BD, self.space)
                entries = [
                    GalleryEntry(name, label_of(name), thumbnails.read(length) if thumbnails else b"")
                    for name, length in zip(names, lengths, strict=True)
                ]
                kept = [n for n in range(len(names)) if n not in bad]
                if kept:
                    yield Part(to_feature_space(vectors_BD[kept], self.space), [entries[n] for n in kept])

    @property
    def _small(self) -> bool:
        return (self.folder / THUMBNAILS).is_file()


def read_extracted(folder: Path, space: FeatureSpace) -> Extracted:
    """Looks through all rows once, for those that the space has no place for."""
    flawed: list[tuple[str, str]] = []
    rows, dimensions = 0, 0
    for names, vectors_BD, _ in _chunks(folder, small=False):
        rows, dimensions = rows + len(names), vectors_BD.shape[1]
        flawed += [(names[n], f"its embedding is {flaw}") for n, flaw in flaws(vectors_BD, space).items()]
    return Extracted(folder, space, rows - len(flawed), dimensions, tuple(flawed))


def _chunks(folder: Path, small: bool) -> Iterator[tuple[list[str], NDArray[np.float32], list[int]]]:
    vectors_ND = np.load(folder / FEATURES, mmap_mode="r", allow_pickle=False)
    columns = ("id", "thumbnail") if small else ("id",)
    first = 0
    for some in batched(read_rows(folder, *columns), _ROWS_AT_ONCE):
        names = [str(row[0]) for row in some]
        lengths = [int(row[1]) for row in some] if small else [0] * len(some)
        yield names, np.array(vectors_ND[first : first + len(some)]), lengths
        first += len(some)


NamedPicture = tuple[str, str, Image.Image]
OnStep = Callable[[int, int | None], None]
EXTRACTION, _CHUNK = ".extraction", 4096


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
    index: IndexChoice = "auto",
    thumbnail_side: int = 96,
    batch: int = BATCH_SIZE,
    workers: int | None = None,
    on_step: OnStep = no_op,
) -> BuildReport:
    """A gallery of all picture files below a folder (or of several files and folders), in the order of their ids.

    An id is the path relative to the folder, with forward slashes; its label the folder's part of that, or what the CSV
    table ``label_from`` says (columns file, label). A file that cannot be decoded is reported and skipped. Files are
    read by ``workers`` threads (default: one a core) while others are embedded: by the model, or by its ``graph``.
    ``index`` is ``auto`` (by size), ``exact``, ``hnsw`` or ``ivfpq``. ``thumbnail_side`` is in pixels, 0 keeps none;
    ``on_step`` gets the pictures done and how many there are. Killed and called again, it goes on where it was and ends
    with the gallery that one run would have made; until then the old gallery stays. Raises GalleryError when no picture
    can be used, ModelError for a graph of another model, and as ``write`` does.
    """
    files = image_files(pictures)
    labels = dict(zip(files, labels_of(list(files), label_from), strict=True))
    _require(feature_space, batch, thumbnail_side)
    kind_for(index, len(files))
    found = _extract(files, out, classifier, graph, batch, workers, thumbnail_side, feature_space, on_step)
    if not found.usable.count:
        raise GalleryError(_none_used(len(files), found.unreadable))
    made = _made(classifier.spec, feature_space)
    count, dimensions = found.usable.count, found.usable.dimensions
    parts = found.usable.parts(labels.__getitem__)
    gallery = write_parts(out, parts, made, count=count, dimensions=dimensions, index=index)
    shutil.rmtree(out / EXTRACTION, ignore_errors=True)
    return BuildReport(gallery, count, found.unreadable)


def add(
    pictures: Path | Sequence[Path],
    folder: Path,
    classifier: Classifier,
    *,
    graph: Path | None = None,
    label_from: LabelFrom = "folder",
    replace: bool = False,
    batch: int = BATCH_SIZE,
    workers: int | None = None,
    on_step: OnStep = no_op,
) -> BuildReport:
    """More pictures for the gallery in that folder, behind those it has; otherwise as ``build``.

    With ``replace`` a picture takes the place of the one of the same id, which moves to the end. The feature space, the
    kind of index and the size of thumbnails stay, an index is built anew. Raises GalleryError for other weights than
    the gallery's, and for an id that it has already.
    """
    old = Gallery.open(folder)
    old.require_weights(classifier.spec.weights_sha256)
    files = image_files(pictures)
    labels = dict(zip(files, labels_of(list(files), label_from), strict=True))
    there = [entry.id for entry in old.entries if entry.id in files]
    if there and not replace:
        raise GalleryError(
            f"the gallery has {there[0]}{f' and {len(there) - 1} more' if there[1:] else ''} already; name other "
            "pictures, or replace them"
        )
    _require(old.feature_space, batch, 0)
    side = _side_of(old)
    found = _extract(files, folder, classifier, graph, batch, workers, side, old.feature_space, on_step)
    unusable = {id for id, _ in found.unreadable}
    leaving = {id for id in there if id not in unusable}
    count = len(old) - len(leaving) + found.usable.count
    parts = itertools.chain(_kept(old, leaving), found.usable.parts(labels.__getitem__))
    made = _made(classifier.spec, old.feature_space)
    gallery = write_parts(folder, parts, made, count=count, dimensions=old.dimensions, index=_again(old, count))
    shutil.rmtree(folder / EXTRACTION, ignore_errors=True)
    return BuildReport(gallery, found.usable.count, found.unreadable)


def build_from(
    pictures: Iterable[NamedPicture],
    out: Path,
    classifier: Classifier,
    *,
    graph: Path | None = None,
    feature_space: FeatureSpace = "unit",
    index: IndexChoice = "auto",
    thumbnail_side: int = 96,
    batch: int = BATCH_SIZE,
    on_step: OnStep = no_op,
) -> BuildReport:
    """A gallery of (id, label, RGB picture), in the order given; made at once; otherwise as ``build``."""
    total = len(pictures) if isinstance(pictures, Sequence) else None
    builder = _Builder(classifier.spec, feature_space, thumbnail_side, batch, on_step, total)
    embedder = _embedder(classifier, graph, batch)
    reader = ImageReader(embedder.spec, not embedder.normalises, thumbnail_side)
    builder.collect(embedded(builder.ready(pictures, reader), embedder, batch=batch))
    return builder.report(out, index)


@dataclass(frozen=True)
class _Found:
    usable: Extracted
    unreadable: tuple[tuple[str, str], ...]


def _extract(
    files: Mapping[str, Path],
    out: Path,
    classifier: Classifier,
    graph: Path | None,
    batch: int,
    workers: int | None,
    side: int,
    space: FeatureSpace,
    on_step: OnStep,
) -> _Found:
    """The pictures' embeddings, in a hidden folder of the gallery's; as far as an earlier run came, from there."""
    existed = out.exists()
    require_ours(out)
    try:
        done = extract(
            files,
            out / EXTRACTION,
            _embedder(classifier, graph, batch),
            batch=batch,
            workers=workers,
            thumbnail_side=side,
            overwrite=True,
            reuse=True,
            on_step=on_step,
        )
    except RequestError as error:
        if not existed:
            _remove_empty(out)
        raise GalleryError(error.message) from error
    usable = read_extracted(done.folder, space)
    unreadable = (*((failure.id, failure.reason) for failure in done.unreadable), *usable.flawed)
    if not usable.count:
        shutil.rmtree(out / EXTRACTION, ignore_errors=True)
        if not existed:
            _remove_empty(out)
    order = {id: n for n, id in enumerate(files)}
    return _Found(usable, tuple(sorted(unreadable, key=lambda pair: order[pair[0]])))


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _kept(gallery: Gallery, leaving: set[str]) -> Iterator[Part]:
    """What a gallery holds, but for some pictures."""
    for first in range(0, len(gallery), _CHUNK):
        entries = gallery.entries[first : first + _CHUNK]
        rows = [n for n, entry in enumerate(entries) if entry.id not in leaving]
        if rows:
            features_BD = np.asarray(gallery.features_ND[first : first + _CHUNK])[rows]
            yield Part(features_BD, [entries[n] for n in rows])


def _side_of(gallery: Gallery) -> int:
    small = gallery.entries[0].thumbnail
    if not small:
        return 0
    with Image.open(io.BytesIO(small)) as picture:
        return picture.width


def _again(gallery: Gallery, count: int) -> IndexChoice:
    """The gallery's own kind of index, or by size where it was exact and may have outgrown that."""
    return "auto" if gallery.index.kind == "exact" and count >= len(gallery) else gallery.index.kind


def _made(spec: ModelSpec, space: FeatureSpace) -> EmbeddingSource:
    return EmbeddingSource(spec.weights_sha256, spec.name, spec.embedding_layer, space)


def _require(space: str, batch: int, side: int) -> None:
    require_space(space)
    if batch < 1 or side < 0:
        raise GalleryError(f"batch={batch}, thumbnail_side={side}; use at least 1, and at least 0")


def _none_used(count: int, unreadable: Sequence[tuple[str, str]]) -> str:
    reasons = "".join(f"; {id}: {reason}" for id, reason in unreadable[:3])
    return f"none of {count} pictures could be used{reasons}"


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
        _require(self.space, self.batch, self.side)

    def ready(self, pictures: Iterable[NamedPicture], reader: ImageReader) -> Iterator[LoadedImage]:
        """Made ready one by one, so that never more than one picture is held at its full size."""
        for id, label, picture in pictures:
            self.labels[id] = label
            yield reader.prepare(id, picture)

    def collect(self, batches: Iterable[EmbeddedBatch]) -> None:
        for batch in batches:
            self.unreadable += [(each.id, each.reason) for each in batch.unreadable]
            self._add(batch.pictures, batch.embeddings_ND)
            self.on_step(len(self.entries) + len(self.unreadable), self.total)

    def report(self, out: Path, index: IndexChoice) -> BuildReport:
        if not self.entries:
            raise GalleryError(_none_used(len(self.unreadable), self.unreadable))
        gallery = write(
            out,
            vectors_ND=np.stack(self.vectors),
            entries=self.entries,
            weights_sha256=self.spec.weights_sha256,
            model=self.spec.name,
            embedding_layer=self.spec.embedding_layer,
            feature_space=self.space,
            index=index,
        )
        return BuildReport(gallery, len(self.entries), tuple(self.unreadable))

    def _add(self, pictures: Sequence[LoadedImage], embedding_ND: Floats) -> None:
        flawed = flaws(embedding_ND, self.space)
        for n, picture in enumerate(pictures):
            if n in flawed:
                self.unreadable.append((picture.id, f"its embedding is {flawed[n]}"))
            else:
                self.entries.append(GalleryEntry(picture.id, self.labels[picture.id], picture.thumbnail))
                self.vectors.append(embedding_ND[n])


def image_files(given: Path | Sequence[Path]) -> dict[str, Path]:
    """As ``convlens.features.image_list.image_files``, but what is wrong is a GalleryError."""
    try:
        return image_list.image_files(given)
    except RequestError as error:
        raise GalleryError(error.message) from error
