"""From images to a gallery: embed them, leave out what cannot be compared, write the rest part by part."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convlens.errors import GalleryError, RequestError
from convlens.features import image_list, output_dir
from convlens.features.embedder import Embedder, open_embedder
from convlens.features.extract import extract
from convlens.features.loader import BATCH_SIZE, ImageReader, LoadedImage, embed_images
from convlens.features.tables import THUMBNAILS, read_rows
from convlens.gallery.entries import GalleryEntry, LabelFrom, labels_of
from convlens.gallery.gallery import Gallery
from convlens.gallery.index import IndexChoice, kind_for
from convlens.gallery.vectors import FeatureSpace, find_flaws, require_space, to_feature_space
from convlens.gallery.versions import require_ours
from convlens.gallery.writer import EmbeddingSource, Part, write_parts
from convlens.image import Picture
from convlens.models import Classifier
from convlens.types import Floats, ModelSpec, no_op
from convlens.utils.concurrency import batched

EXTRACTION = ".extraction"  # hidden in the gallery's folder; stays there after a kill, so that the build can resume
_FEATURES = "features.npy"
_CHUNK = 4096  # rows in memory at a time

NamedImage = tuple[str, str, Picture]
OnStep = Callable[[int, int | None], None]
_Failures = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class BuildReport:
    """``added`` images are in the gallery; ``unreadable`` holds (id, reason) of each that is not."""

    gallery: Gallery
    added: int
    unreadable: _Failures


def build(
    images: Path | Sequence[Path],
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
    """A gallery of all image files below a folder (or of several files and folders), in the order of their ids.

    An id is the path relative to the folder, with forward slashes; its label is the folder's part of that, or what the
    CSV table ``label_from`` says (columns file, label). A file that cannot be decoded is reported and left out. Files
    are read by ``workers`` threads (default: one a core) while others are embedded, by the model or by its ``graph``.
    ``index`` is ``auto`` (by size), ``exact``, ``hnsw`` or ``ivfpq``. ``thumbnail_side`` is in pixels, 0 keeps none;
    ``on_step`` is called with the images done and their number. Killed and called again, it resumes and ends with the
    gallery that one run would have made; until then the old gallery stays. Raises GalleryError where no image can be
    used, ModelError for a graph of another model, and as ``write`` does.
    """
    files = image_files(images)
    labels = dict(zip(files, labels_of(list(files), label_from), strict=True))
    embedding = _Embedding(classifier, feature_space, graph, batch, workers, thumbnail_side, on_step)
    kind_for(index, len(files))  # refuses an index that cannot be built before anything is embedded
    extracted = _extract(files, out, embedding)
    if not extracted.count:
        raise GalleryError(_none_used(len(files), extracted.unusable))
    parts = extracted.parts(labels)
    count, dimensions = extracted.count, extracted.dimensions
    gallery = write_parts(out, parts, embedding.source, count=count, dimensions=dimensions, index=index)
    # Not before: a build that is killed while it writes must find its features again.
    shutil.rmtree(out / EXTRACTION, ignore_errors=True)
    return BuildReport(gallery, count, extracted.unusable)


def add(
    images: Path | Sequence[Path],
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
    """More images for the gallery in that folder, behind those it has; otherwise as ``build``.

    With ``replace`` an image takes the place of the one with the same id, which moves to the end. The feature space,
    the kind of index and the size of thumbnails stay; an index is built anew. Raises GalleryError for other weights
    than the gallery's, and for an id that it has already.
    """
    old = Gallery.open(folder)
    old.require_weights(classifier.spec.weights_sha256)
    files = image_files(images)
    labels = dict(zip(files, labels_of(list(files), label_from), strict=True))
    known = [entry.id for entry in old.entries if entry.id in files]
    if known and not replace:
        raise GalleryError(
            f"the gallery has {known[0]}{f' and {len(known) - 1} more' if known[1:] else ''} already; name other "
            "images, or replace them"
        )
    embedding = _Embedding(classifier, old.feature_space, graph, batch, workers, _thumbnail_side(old), on_step)
    extracted = _extract(files, folder, embedding)
    unusable = {id for id, _ in extracted.unusable}
    replaced = {id for id in known if id not in unusable}
    count = len(old) - len(replaced) + extracted.count
    # An exact gallery may have outgrown exact search, unless it shrank.
    index: IndexChoice = "auto" if old.index.kind == "exact" and count >= len(old) else old.index.kind
    parts = itertools.chain(_kept_parts(old, replaced), extracted.parts(labels))
    gallery = write_parts(folder, parts, embedding.source, count=count, dimensions=old.dimensions, index=index)
    shutil.rmtree(folder / EXTRACTION, ignore_errors=True)
    return BuildReport(gallery, extracted.count, extracted.unusable)


def build_from(
    images: Iterable[NamedImage],
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
    """A gallery of (id, label, image) in that order, made at once and not resumed; otherwise as ``build``."""
    embedding = _Embedding(classifier, feature_space, graph, batch, None, thumbnail_side, on_step)
    embedder = embedding.open()
    reader = ImageReader(embedder.spec, not embedder.normalises, thumbnail_side)
    total = len(images) if isinstance(images, Sequence) else None
    labels: dict[str, str] = {}

    def prepared() -> Iterator[LoadedImage]:
        for id, label, decoded in images:  # one by one, so that only one is held at its full size
            labels[id] = label
            yield reader.prepare(id, decoded)

    parts: list[Part] = []
    unusable: list[tuple[str, str]] = []
    done = 0
    for embedded in embed_images(prepared(), embedder, batch=batch):
        entries = [GalleryEntry(each.id, labels[each.id], each.thumbnail) for each in embedded.images]
        flaws = find_flaws(embedded.embeddings_ND, feature_space)
        unusable += _failures([entry.id for entry in entries], flaws)
        parts += _usable_part(entries, embedded.embeddings_ND, flaws, feature_space)
        done += len(entries)
        on_step(done, total)
    if not parts:
        raise GalleryError(_none_used(done, unusable))
    count, dimensions = sum(len(part.entries) for part in parts), parts[0].features_BD.shape[1]
    gallery = write_parts(out, parts, embedding.source, count=count, dimensions=dimensions, index=index)
    return BuildReport(gallery, count, tuple(unusable))


def image_files(images: Path | Sequence[Path]) -> dict[str, Path]:
    """As ``convlens.features.image_list.image_files``, but raises GalleryError."""
    try:
        return image_list.image_files(images)
    except RequestError as error:
        raise GalleryError(error.message) from error


def interrupted_runtime(folder: Path) -> str:
    """What embeds the images of a build that was begun in this folder and can be resumed; empty where there is none."""
    return output_dir.interrupted_runtime(folder / EXTRACTION)


def interrupted_images(folder: Path) -> int:
    """How many images the build that was begun in this folder has embedded."""
    return output_dir.interrupted_images(folder / EXTRACTION)


@dataclass(frozen=True)
class _Embedding:
    """How images are embedded. Raises GalleryError for values that cannot work."""

    classifier: Classifier
    space: FeatureSpace
    graph: Path | None
    batch: int
    workers: int | None
    thumbnail_side: int
    on_step: OnStep

    def __post_init__(self) -> None:
        require_space(self.space)
        if self.batch < 1 or self.thumbnail_side < 0:
            sizes = f"batch={self.batch}, thumbnail_side={self.thumbnail_side}"
            raise GalleryError(f"{sizes}; use at least 1, and at least 0")

    @property
    def source(self) -> EmbeddingSource:
        spec = self.classifier.spec
        return EmbeddingSource(spec.weights_sha256, spec.name, spec.embedding_layer, self.space)

    def open(self) -> Embedder:
        """Raises GalleryError for a graph that sees images otherwise than the model."""
        embedder, spec = open_embedder(self.classifier, self.graph, batch=self.batch), self.classifier.spec
        # Queries come from the model itself, so the gallery's vectors must be the ones it would have made.
        if embedder.spec != spec or embedder.precision == "half":
            graph = f"{_preprocessing(embedder.spec)}, precision={embedder.precision}"
            raise GalleryError(
                f"{self.graph} ({graph}) sees images otherwise than {spec.name} ({_preprocessing(spec)}, "
                "precision=float32), which will ask the gallery; export it without another size and without half"
            )
        return embedder


def _preprocessing(spec: ModelSpec) -> str:
    crop, resize = (
        str(size[0]) if size[0] == size[1] else f"{size[0]}×{size[1]}" for size in (spec.input_size, spec.resize_size)
    )
    mode = f", crop_mode={spec.crop_mode}" if spec.crop_mode != "center" else ""
    return f"crop={crop}, resize={resize}{mode}"


@dataclass(frozen=True)
class _Extracted:
    """A finished extraction: ``count`` of its rows are usable, ``unusable`` holds (id, reason) of all other images."""

    folder: Path
    space: FeatureSpace
    count: int
    dimensions: int
    unusable: _Failures

    def parts(self, labels: Mapping[str, str]) -> Iterator[Part]:
        """The usable rows in order."""
        with_thumbnails = (self.folder / THUMBNAILS).is_file()
        with (self.folder / THUMBNAILS).open("rb") if with_thumbnails else contextlib.nullcontext() as thumbnails:
            for ids, vectors_BD, lengths in _chunks(self.folder, with_thumbnails):
                entries = [
                    GalleryEntry(id, labels[id], thumbnails.read(length) if thumbnails else b"")
                    for id, length in zip(ids, lengths, strict=True)
                ]
                yield from _usable_part(entries, vectors_BD, find_flaws(vectors_BD, self.space), self.space)


def _extract(files: Mapping[str, Path], out: Path, embedding: _Embedding) -> _Extracted:
    """Embed the files into a hidden folder of the gallery's; resumes what an earlier run began there."""
    # Before any work: embedding may take hours.
    existed = out.exists()
    require_ours(out)
    try:
        extraction = extract(
            files,
            out / EXTRACTION,
            embedding.open(),
            batch=embedding.batch,
            workers=embedding.workers,
            thumbnail_side=embedding.thumbnail_side,
            overwrite=True,  # what other settings began is of no use to anybody: the folder is ours alone
            reuse=True,  # a kill may have come between the extraction and the writing
            on_step=embedding.on_step,
        )
    except RequestError as error:
        if not existed:
            _remove_empty(out)
        raise GalleryError(error.message) from error
    # Every row is looked at once before any is written: a .npy file begins with their number.
    count = 0
    unusable = [(failure.id, failure.reason) for failure in extraction.unreadable]
    for ids, vectors_BD, _ in _chunks(extraction.folder, with_thumbnails=False):
        flaws = find_flaws(vectors_BD, embedding.space)
        unusable += _failures(ids, flaws)
        count += len(ids) - len(flaws)
    if not count:
        shutil.rmtree(out / EXTRACTION, ignore_errors=True)
        if not existed:
            _remove_empty(out)
    order = {id: n for n, id in enumerate(files)}
    in_order = tuple(sorted(unusable, key=lambda pair: order[pair[0]]))
    return _Extracted(extraction.folder, embedding.space, count, extraction.dimensions, in_order)


def _chunks(folder: Path, with_thumbnails: bool) -> Iterator[tuple[list[str], NDArray[np.float32], list[int]]]:
    """Ids, features (B, D) and sizes of thumbnails, a chunk of rows at a time."""
    vectors_ND = np.load(folder / _FEATURES, mmap_mode="r", allow_pickle=False)
    columns = ("id", "thumbnail") if with_thumbnails else ("id",)
    first = 0
    for rows in batched(read_rows(folder, *columns), _CHUNK):
        ids = [str(row[0]) for row in rows]
        lengths = [int(row[1]) for row in rows] if with_thumbnails else [0] * len(rows)
        yield ids, np.array(vectors_ND[first : first + len(rows)]), lengths
        first += len(rows)


def _usable_part(
    entries: Sequence[GalleryEntry], vectors_BD: Floats, flaws: Mapping[int, str], space: FeatureSpace
) -> list[Part]:
    """The rows without a flaw as a part; none where there is none."""
    kept = [n for n in range(len(entries)) if n not in flaws]
    return [Part(to_feature_space(vectors_BD[kept], space), [entries[n] for n in kept])] if kept else []


def _failures(ids: Sequence[str], flaws: Mapping[int, str]) -> list[tuple[str, str]]:
    return [(ids[n], f"its embedding is {flaw}") for n, flaw in flaws.items()]


def _kept_parts(gallery: Gallery, replaced: set[str]) -> Iterator[Part]:
    """The gallery's rows but for the replaced ones; their vectors are as they are compared already."""
    for first in range(0, len(gallery), _CHUNK):
        entries = gallery.entries[first : first + _CHUNK]
        rows = [n for n, entry in enumerate(entries) if entry.id not in replaced]
        if rows:
            features_BD = np.asarray(gallery.features_ND[first : first + _CHUNK])[rows]
            yield Part(features_BD, [entries[n] for n in rows])


def _thumbnail_side(gallery: Gallery) -> int:
    thumbnail = gallery.entries[0].thumbnail
    if not thumbnail:
        return 0
    with Image.open(io.BytesIO(thumbnail)) as decoded:
        return decoded.width


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _none_used(count: int, unusable: Sequence[tuple[str, str]]) -> str:
    reasons = "".join(f"; {id}: {reason}" for id, reason in unusable[:3])
    return f"none of {count} images could be used{reasons}"
