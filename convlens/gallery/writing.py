"""A gallery's files, and the order in which they come into being."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convlens.errors import GalleryError
from convlens.gallery.entries import GalleryEntry, write_entries
from convlens.gallery.features import FeatureSpace, as_features, require_matrix, require_space
from convlens.gallery.manifest import ENTRIES, FILES, MANIFEST, THUMBNAILS, VECTORS, Manifest, stored, version_name
from convlens.gallery.store import Gallery
from convlens.gallery.versions import flush, new_version, publish
from convlens.types import Floats


def write(
    folder: Path,
    *,
    vectors_ND: Floats,
    entries: Sequence[GalleryEntry],
    weights_sha256: str,
    model: str,
    embedding_layer: str,
    feature_space: FeatureSpace = "unit",
) -> Gallery:
    """Make ``folder`` the gallery of these embeddings (N, D), replacing the gallery that it may hold.

    Killed at any moment, the old gallery or the new one is there. ``unit`` compares directions (each vector divided by
    its length), ``raw`` the embeddings as they are. Raises GalleryError for no entries, counts that differ, an id given
    twice, NaN, zero vectors in ``unit``, a folder with other things in it, and where the disk refuses.
    """
    require_space(feature_space)
    require_matrix(vectors_ND)
    _require_entries(entries, len(vectors_ND))
    features_ND = as_features(vectors_ND, feature_space)
    try:
        with new_version(folder) as building:
            _write_files(building, features_ND, entries)
            manifest = Manifest(
                len(entries),
                features_ND.shape[1],
                feature_space,
                weights_sha256,
                model,
                embedding_layer,
                files={name: stored(building / name) for name in FILES},
            )
            publish(building, _write_manifest(building, manifest))
            return Gallery.open(folder, verify=False)
    except OSError as error:
        raise GalleryError(f"{folder} cannot be written ({error}); choose another folder or make room") from error


def _write_files(building: Path, features_ND: NDArray[np.float32], entries: Sequence[GalleryEntry]) -> None:
    with (building / VECTORS).open("xb") as file:
        np.save(file, features_ND.astype("<f4", copy=False), allow_pickle=False)
        flush(file)
    with (building / ENTRIES).open("xb") as lines, (building / THUMBNAILS).open("xb") as thumbnails:
        write_entries(entries, lines, thumbnails)
        flush(lines)
        flush(thumbnails)


def _write_manifest(building: Path, manifest: Manifest) -> str:
    """The manifest comes last; returns the version's name."""
    data = manifest.to_bytes()
    with (building / MANIFEST).open("xb") as file:
        file.write(data)
        flush(file)
    return version_name(data)


def _require_entries(entries: Sequence[GalleryEntry], vectors: int) -> None:
    if not entries:
        raise GalleryError("a gallery needs at least one picture; none were given")
    if len(entries) != vectors:
        raise GalleryError(f"{len(entries)} entries and {vectors} embeddings; a gallery needs as many of both")
    ids = sorted(entry.id for entry in entries)
    twice = [a for a, b in itertools.pairwise(ids) if a == b]
    if twice:
        raise GalleryError(f"id {twice[0]!r} is given more than once; ids must be unique")
