"""Which picture files a folder or a list of paths means, and what to call them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from convlens.errors import GalleryError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


def picture_files(given: Path | Sequence[Path]) -> dict[str, Path]:
    """id -> file, sorted by id. Folders are walked; hidden files and folders and other suffixes are passed over.

    An id is the path relative to the root, with forward slashes. The root is the folder given, or of several paths the
    deepest folder that holds them all. Raises GalleryError for a path that does not exist, or when nothing is found.
    """
    paths = [given] if isinstance(given, Path) else list(given)
    for path in paths:
        if not path.exists():
            raise GalleryError(f"no such file or folder: {path}; give a folder of pictures")
    if not paths:
        raise GalleryError("no paths were given; give a folder of pictures")
    places = [_place(path) for path in paths]
    root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in places]))
    found = {_id(file.relative_to(root)): file for path in places for file in _walked(path)}
    if not found:
        raise GalleryError(f"no pictures in {', '.join(map(str, paths[:3]))}; looked for {', '.join(sorted(SUFFIXES))}")
    return dict(sorted(found.items()))


def _place(path: Path) -> Path:
    """Absolute, without dots; a link to a picture keeps its own name."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _id(path: Path) -> str:
    """Names that are no text on this system are spelt out, because ids are shown, stored and sent."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode("utf-8")


def _walked(path: Path) -> Iterable[Path]:
    if not path.is_dir():
        return [path]
    return [file for file in path.rglob("*") if _wanted(file, path)]


def _wanted(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() in SUFFIXES and file.is_file()
