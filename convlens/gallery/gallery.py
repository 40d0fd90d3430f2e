"""A gallery that can be queried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convlens.errors import GalleryError, RequestError
from convlens.gallery.entries import GalleryEntry, StoredEntries, read_entries
from convlens.gallery.index import Hubness, IndexRecord
from convlens.gallery.search import ExactSearch, IndexedSearch, Nearest, Search
from convlens.gallery.vectors import FeatureSpace, require_matrix, to_feature_space
from convlens.gallery.versions import (
    ENTRIES,
    INDEX,
    THUMBNAILS,
    VECTORS,
    Manifest,
    current,
    read_manifest,
    verify_hashes,
    verify_sizes,
)
from convlens.types import Floats, Neighbour


class Gallery:
    """Embeddings of images, with ids, labels and thumbnails, made by one model's weights.

    Any number of threads may query one Gallery at once. It keeps working when its folder is replaced or deleted.
    """

    def __init__(
        self, manifest: Manifest, vectors_ND: NDArray[np.float32], entries: StoredEntries, search: Search
    ) -> None:
        self._manifest = manifest
        self._entries = entries
        self._vectors_ND = vectors_ND
        self._search = search

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True, exact: bool = False, gpu: int | None = None) -> Gallery:
        """The gallery in that folder, which is only read.

        ``verify`` hashes every file (about a second for each gigabyte); without it only their sizes are checked.
        ``exact`` searches all vectors even where there is an index; ``gpu`` does so on that GPU. Raises GalleryError,
        naming the file, for a missing gallery and for a damaged one.
        """
        while True:
            version = current(folder)
            try:
                return cls._load(version, verify=verify, exact=exact or gpu is not None, gpu=gpu)
            except GalleryError:
                # A version may be replaced, and deleted, while it is read: then the new one is opened.
                if current(folder) == version:
                    raise

    @classmethod
    def _load(cls, version: Path, *, verify: bool, exact: bool, gpu: int | None) -> Gallery:
        manifest = read_manifest(version)
        verify_sizes(manifest, version)
        if verify:
            verify_hashes(manifest, version)
        vectors_ND = _map_vectors(version / VECTORS, manifest)
        try:
            entries = read_entries(version / ENTRIES, version / THUMBNAILS)
        except OSError as error:
            raise GalleryError(f"{version} cannot be read ({error}); build the gallery again") from error
        if len(entries) != manifest.count:
            raise GalleryError(
                f"{version / ENTRIES} has {len(entries)} entries for {manifest.count} embeddings; build it again"
            )
        if exact or manifest.index.kind == "exact":
            return cls(manifest, vectors_ND, entries, ExactSearch(vectors_ND, gpu=gpu))
        return cls(manifest, vectors_ND, entries, IndexedSearch(vectors_ND, version / INDEX, manifest.index))

    def __len__(self) -> int:
        return self._manifest.count

    @property
    def entries(self) -> Sequence[GalleryEntry]:
        """In the order in which they were written."""
        return self._entries

    @property
    def dimensions(self) -> int:
        return self._manifest.dimensions

    @property
    def features_ND(self) -> NDArray[np.float32]:
        """Vectors (N, D) as they are compared, in the gallery's order; memory-mapped, not to be written to."""
        return self._vectors_ND

    @property
    def feature_space(self) -> FeatureSpace:
        return self._manifest.feature_space

    @property
    def index(self) -> IndexRecord:
        """How neighbours are found, and how many of them."""
        return self._manifest.index

    @property
    def hubness(self) -> Hubness | None:
        """How unevenly neighbours are spread; None for fewer than 3 images."""
        return self._manifest.hubness

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(stored.bytes for stored in self._manifest.files.values())

    @property
    def weights_sha256(self) -> str:
        return self._manifest.weights_sha256

    @property
    def model(self) -> str:
        return self._manifest.model

    @property
    def embedding_layer(self) -> str:
        return self._manifest.embedding_layer

    def require_weights(self, sha256: str) -> None:
        """Raises GalleryError unless these very weights made the gallery."""
        # Other weights' features have other meanings: distances to them would be plausible and wrong.
        if sha256 != self.weights_sha256:
            ours, theirs = self.weights_sha256[:12], sha256[:12]
            raise GalleryError(
                f"the gallery was made by {self.model} with weights {ours}, but the model has weights {theirs}; "
                "use the model it was made by, or build the gallery again with this one"
            )

    def query(self, embedding_ND: Floats, *, k: int) -> tuple[tuple[Neighbour, ...], ...]:
        """Each embedding's (N, D) ``k`` nearest images, nearest first, ties in the gallery's order.

        Distances are exact and Euclidean, not squared, in the gallery's feature space; embeddings are as the model
        makes them. With an index a true neighbour may be missing, see ``index.recall``. Raises RequestError for
        ``k`` outside 1..size, GalleryError for embeddings of another length, for NaN, and for zeros in ``unit``.
        """
        self._require_k(k)
        require_matrix(embedding_ND)
        if embedding_ND.shape[1] != self.dimensions:
            raise GalleryError(
                f"embeddings have {embedding_ND.shape[1]} values, the gallery's have {self.dimensions}; "
                f"it was made by {self.model} at layer {self.embedding_layer}"
            )
        features_ND = to_feature_space(embedding_ND, self.feature_space)
        return tuple(self._neighbours(nearest) for nearest in self._search.nearest(features_ND, k))

    def _require_k(self, k: int) -> None:
        # A bool is an int to isinstance.
        if type(k) is not int or not 1 <= k <= len(self):
            size = len(self)
            raise RequestError(f"k={k!r}, but the gallery holds {size} images; use 1..{size}", field="options.k")

    def _neighbours(self, nearest: Nearest) -> tuple[Neighbour, ...]:
        rows = (self._entries[int(row)] for row in nearest.rows_M)
        return tuple(
            Neighbour(entry.id, entry.label, float(distance), entry.thumbnail)
            for entry, distance in zip(rows, nearest.distance_M, strict=True)
        )


def _map_vectors(path: Path, manifest: Manifest) -> NDArray[np.float32]:
    try:
        vectors_ND = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise GalleryError(f"{path} is no array ({error}); build the gallery again") from error
    shape = (manifest.count, manifest.dimensions)
    if vectors_ND.shape != shape or vectors_ND.dtype != np.dtype("<f4") or not vectors_ND.flags.c_contiguous:
        actual = f"{vectors_ND.dtype} {vectors_ND.shape}"
        # The manifest's hash would not notice: a gallery that was written wrongly has the hashes of what was written.
        raise GalleryError(f"{path} holds {actual} instead of float32 {shape}; build the gallery again")
    return np.asarray(vectors_ND)
