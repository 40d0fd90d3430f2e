"""A gallery as a page reads it: all vectors in one file of float32, and a thumbnail a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convlens.errors import GalleryError
from convlens.gallery import Gallery

_VECTORS, _THUMBNAILS = "gallery/vectors.f32", "gallery/thumbnails"
_LARGEST_BYTES = 256 * 10**6  # of vectors: 50,000 images of 1280 numbers; a page compares with each of them


def open_gallery(folder: Path, *, weights_sha256: str) -> Gallery:
    """The gallery of these weights; GalleryError for one that is damaged, of other weights, or too large for a page."""
    gallery = Gallery.open(folder)
    gallery.require_weights(weights_sha256)
    size = gallery.features_ND.nbytes
    if size > _LARGEST_BYTES:
        raise GalleryError(
            f"{folder} has {len(gallery)} images, {size / 1e6:.0f} MB of vectors, and a page takes at most "
            f"{_LARGEST_BYTES / 1e6:.0f} MB; put the gallery into a server's archive and name that by --server"
        )
    return gallery


def write_gallery(gallery: Gallery, site: Path) -> dict[str, Any]:
    """Write the vectors as they are compared, and the thumbnails; gives the gallery's part of ``site.json``.

    Distances are Euclidean; with the metric ``unit`` a query is scaled to length 1 beforehand.
    """
    (site / _THUMBNAILS).mkdir(parents=True)
    gallery.features_ND.astype("<f4", copy=False).tofile(site / _VECTORS)
    entries = []
    for n, entry in enumerate(gallery.entries):
        thumbnail = f"{_THUMBNAILS}/{n}.jpg" if entry.thumbnail else None
        if thumbnail:
            (site / thumbnail).write_bytes(entry.thumbnail)
        entries.append({"id": entry.id, "label": entry.label, "thumbnail": thumbnail})
    return {
        "count": len(gallery),
        "dimension": gallery.dimensions,
        "metric": gallery.feature_space,
        "vectors": _VECTORS,
        "entries": entries,
    }
