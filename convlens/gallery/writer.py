"""Writing a gallery: the files of a new version, and the order in which they appear."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convlens.errors import GalleryError
from convlens.gallery.entries import EntryWriter, GalleryEntry
from convlens.gallery.gallery import Gallery
from convlens.gallery.index import EXACT, IndexChoice, IndexKind, IndexRecord, build_index, hubness, kind_for
from convlens.gallery.vectors import FeatureSpace, require_matrix, require_space, to_feature_space
from convlens.gallery.versions import (
    ENTRIES,
    FILES,
    INDEX,
    MANIFEST,
    THUMBNAILS,
    VECTORS,
    Manifest,
    file_record,
    new_version,
    publish,
    version_name,
)
from convlens.types import Floats
from convlens.utils.files import sync_file


@dataclass(frozen=True)
class EmbeddingSource:
    """What made the vectors, and the space they are compared in."""

    weights_sha256: str
    model: str
    embedding_layer: str
    feature_space: FeatureSpace = "unit"


@dataclass(frozen=True)
class Part:
    """Consecutive images: their features (B, D) as they are compared, and an entry for each."""

    features_BD: NDArray[np.float32]
    entries: Sequence[GalleryEntry]


def write(
    folder: Path,
    *,
    vectors_ND: Floats,
    entries: Sequence[GalleryEntry],
    weights_sha256: str,
    model: str,
    embedding_layer: str,
    feature_space: FeatureSpace = "unit",
    index: IndexChoice = "auto",
) -> Gallery:
    """Make ``folder`` the gallery of these embeddings (N, D), replacing the gallery that it may hold.

    Killed at any moment, it leaves the old gallery or the new one. ``unit`` compares directions (each vector divided by
    its length), ``raw`` the embeddings as they are. Raises GalleryError where there are no entries or another number of
    them, for an id given twice, NaN, zero vectors in ``unit``, a folder with other things in it, too few images for the
    ``index``, and where the disk refuses.
    """
    require_space(feature_space)
    require_matrix(vectors_ND)
    if len(entries) != len(vectors_ND):
        raise GalleryError(f"{len(entries)} entries and {len(vectors_ND)} embeddings; a gallery needs as many of both")
    source = EmbeddingSource(weights_sha256, model, embedding_layer, feature_space)
    parts = [Part(to_feature_space(vectors_ND, feature_space), entries)] if len(entries) else []
    return write_parts(folder, parts, source, count=len(entries), dimensions=vectors_ND.shape[1], index=index)


def write_parts(
    folder: Path,
    parts: Iterable[Part],
    source: EmbeddingSource,
    *,
    count: int,
    dimensions: int,
    index: IndexChoice = "auto",
) -> Gallery:
    """As ``write``, of ``count`` images that come part by part, so that they are never in memory together."""
    if not count:
        raise GalleryError("a gallery needs at least one image; none were given")
    kind = kind_for(index, count)
    try:
        with new_version(folder) as building:
            _write_files(building, parts, count, dimensions)
            features_ND = np.load(building / VECTORS, mmap_mode="r", allow_pickle=False)
            record = EXACT if kind == "exact" else _write_index(building / INDEX, features_ND, kind)
            names = FILES if kind == "exact" else (*FILES, INDEX)
            manifest = Manifest(
                count,
                dimensions,
                source.feature_space,
                source.weights_sha256,
                source.model,
                source.embedding_layer,
                files={name: file_record(building / name) for name in names},
                index=record,
                hubness=hubness(features_ND),
            )
            publish(building, _write_manifest(building, manifest))
            return Gallery.open(folder, verify=False)
    except OSError as error:
        raise GalleryError(f"{folder} cannot be written ({error}); choose another folder or make room") from error


def _write_files(building: Path, parts: Iterable[Part], count: int, dimensions: int) -> None:
    with (
        (building / VECTORS).open("xb") as vectors,
        (building / ENTRIES).open("xb") as lines,
        (building / THUMBNAILS).open("xb") as thumbnails,
    ):
        # Written by hand, because np.save needs all rows in memory.
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, dimensions)}
        np.lib.format.write_array_header_1_0(vectors, header)
        writer, written = EntryWriter(lines, thumbnails), 0
        for part in parts:
            vectors.write(part.features_BD.astype("<f4", copy=False).tobytes())
            writer.add(part.entries)
            written += len(part.entries)
        assert written == count, "the header says how many rows there are"
        for file in (vectors, lines, thumbnails):
            sync_file(file)


def _write_index(path: Path, features_ND: Floats, kind: IndexKind) -> IndexRecord:
    record = build_index(features_ND, kind, path)
    with path.open("rb") as file:  # faiss itself does not flush it to disk
        sync_file(file)
    return record


def _write_manifest(building: Path, manifest: Manifest) -> str:
    """Written last; returns the version's name."""
    data = manifest.to_bytes()
    with (building / MANIFEST).open("xb") as file:
        file.write(data)
        sync_file(file)
    return version_name(data)
