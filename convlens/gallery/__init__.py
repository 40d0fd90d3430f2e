"""Images to find neighbours among: a folder with their embeddings, ids, labels and thumbnails, tied to the weights.

    builder   images -> a gallery                        gallery   the Gallery: open, query
    writer    the files of one version                   search    nearest vectors (faiss)
    versions  manifests, and swapping versions safely    index     HNSW and IVF-PQ for large galleries; hubness
    entries   ids, labels and thumbnails on disk         vectors   which vectors may be compared, and how

Importing this loads neither faiss nor torch: faiss comes with the first query, torch with ``build``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from convlens.gallery.entries import GalleryEntry
from convlens.gallery.gallery import Gallery
from convlens.gallery.writer import write

if TYPE_CHECKING:
    from convlens.gallery.builder import BuildReport, add, build, build_from

__all__ = ["BuildReport", "Gallery", "GalleryEntry", "add", "build", "build_from", "write"]

_FROM_BUILDER = ("BuildReport", "add", "build", "build_from")


def __getattr__(name: str) -> Any:
    if name not in _FROM_BUILDER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("convlens.gallery.builder"), name)
