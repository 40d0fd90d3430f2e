"""Which picture files a folder, some paths or a list means, and what to call them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from convlens.errors import RequestError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


def find_images(given: Sequence[Path]) -> dict[str, Path]:
    """id -> file: of a LIST (the only path, a file without a picture's suffix) its lines, else as ``image_files``."""
    if len(given) == 1 and given[0].is_file() and given[0].suffix.lower() not in SUFFIXES:
        return read_image_list(given[0])
    return image_files(given)


def image_files(given: Path | Sequence[Path]) -> dict[str, Path]:
    """id -> file, sorted by id. Folders are walked; hidden files and folders and other suffixes are passed over.

    An id is the path relative to the root, with forward slashes. The root is the folder given, or of several paths the
    deepest folder that holds them all. Raises RequestError for a path that does not exist, or when nothing is found.
    """
    paths = [given] if isinstance(given, Path) else list(given)
    for path in paths:
        if not path.exists():
            raise RequestError(f"no such file or folder: {path}; give a folder of pictures")
    if not paths:
        raise RequestError("no paths were given; give a folder of pictures")
    places = [_place(path) for path in paths]
    root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in places]))
    found = {_id(file.relative_to(root)): file for path in places for file in _walked(path)}
    if not found:
        raise RequestError(f"no pictures in {', '.join(map(str, paths[:3]))}; looked for {', '.join(sorted(SUFFIXES))}")
    return dict(sorted(found.items()))


def read_image_list(path: Path) -> dict[str, Path]:
    """id -> file in the order of a text file with one path a line; a relative one starts at the list's own folder.

    An id is the line, with forward slashes. Empty lines are passed over; a file that is not there stays in, to be
    reported with the others that cannot be read. Raises RequestError for what is no such list, or names a path twice.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); give a folder or a list of paths") from error
    found: dict[str, Path] = {}
    for number, line in enumerate(lines, start=1):
        name = _named(line)
        if b"\0" in line:
            raise RequestError(f"{path} is no list of paths: line {number} holds a zero byte; give one path a line")
        if name is None:
            continue
        if _id(name) in found:
            raise RequestError(f"{path} names {_id(name)} twice, the second time in line {number}; leave one out")
        found[_id(name)] = path.parent / name
    if not found:
        raise RequestError(f"{path} names no pictures; write one path a line")
    return found


def _named(line: bytes) -> PurePath | None:
    """What a line names; editors on Windows leave marks at the beginning of files and at the end of lines."""
    bare = line.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\r")
    return PurePath(os.fsdecode(bare)) if bare.strip() else None


def _place(path: Path) -> Path:
    """Absolute, without dots; a link to a picture keeps its own name."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _id(path: PurePath) -> str:
    """Names that are no text on this system are spelt out, because ids are shown, stored and sent."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode("utf-8")


def _walked(path: Path) -> Iterable[Path]:
    if not path.is_dir():
        return [path]
    return [file for file in path.rglob("*") if _wanted(file, path)]


def _wanted(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() in SUFFIXES and file.is_file()
