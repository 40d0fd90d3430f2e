"""Small galleries for tests, and the slow way to find neighbours in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist

from convlens.gallery import Gallery, GalleryEntry, write

SHA = "0123456789abcdef" * 4


def make(folder: Path, vectors_ND, *, feature_space: str = "raw", index: str = "auto") -> Gallery:
    """Pictures p0, p1, … in this order, with three labels in turn."""
    entries = [GalleryEntry(f"p{n}", f"label {n % 3}", b"\xff\xd8 picture %d" % n) for n in range(len(vectors_ND))]
    return write(
        folder,
        vectors_ND=np.asarray(vectors_ND, dtype=np.float32),
        entries=entries,
        weights_sha256=SHA,
        model="tiny",
        embedding_layer="head",
        feature_space=feature_space,
        index=index,
    )


def found(gallery: Gallery, query_ND, k: int) -> tuple[list[list[int]], np.ndarray]:
    """Rows of the gallery and distances."""
    rows = gallery.query(np.asarray(query_ND, dtype=np.float32), k=k)
    return [[int(n.id[1:]) for n in row] for row in rows], np.array([[n.distance for n in row] for row in rows])


def brute_force(vectors_ND, query_ND, k: int, *, unit: bool = False) -> tuple[list[list[int]], np.ndarray]:
    """The same by scipy, in float64, from the values in float32; ties in the order given."""
    query, vectors = (np.asarray(x, dtype=np.float32).astype(np.float64) for x in (query_ND, vectors_ND))
    if unit:
        query, vectors = (x / np.sqrt((x * x).sum(1))[:, None] for x in (query, vectors))
    distance = cdist(query, vectors)
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return order.tolist(), np.take_along_axis(distance, order, axis=1)
