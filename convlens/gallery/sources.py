"""Which picture files a folder or a list of paths means, in a gallery's words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convlens.bulk import sources
from convlens.errors import GalleryError, RequestError


def picture_files(given: Path | Sequence[Path]) -> dict[str, Path]:
    """As ``convlens.bulk.sources.picture_files``, but what is wrong is a GalleryError."""
    try:
        return sources.picture_files(given)
    except RequestError as error:
        raise GalleryError(error.message) from error
