"""Pictures to find neighbours among: a folder with their embeddings, names, labels and thumbnails, tied to the weights.

    building.py  pictures -> a gallery            store.py     the Gallery: open, query
    sources.py   folders and lists of pictures    search.py    nearest vectors (faiss)
    labels.py    where labels come from           features.py  which vectors may be compared, and how
    indexing.py  HNSW and IVF-PQ for big ones     hubness.py   whether some are everybody's neighbours
    nearest.py   nearest rows among rows          extracted.py features on disk -> parts of a gallery
    writing.py   files of one version             versions.py  swapping versions so that a kill cannot hurt
    manifest.py  what a version must hold         entries.py   names, labels and thumbnails on disk

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

_BUILDING = ("BuildReport", "add", "build", "build_from")


def __getattr__(name: str) -> Any:
    if name not in _BUILDING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("convlens.gallery.builder"), name)
