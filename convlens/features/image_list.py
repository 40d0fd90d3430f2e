"""Which image files a folder, some paths or a list mean, and the ids of their images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

from convlens.errors import RequestError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_ARRAYS = frozenset({".npy"})  # of models that take other channels than RGB


def find_images(paths: Sequence[Path]) -> dict[str, Path]:
    """id -> file: the lines of a list (a single file without an image's suffix), else as ``image_files``."""
    if len(paths) == 1 and paths[0].is_file() and paths[0].suffix.lower() not in _SUFFIXES | _ARRAYS:
        return read_image_list(paths[0])
    return image_files(paths)


def image_files(paths: Path | Sequence[Path]) -> dict[str, Path]:
    """id -> file, sorted by id. Folders are walked; hidden files and folders and other suffixes are skipped.

    Arrays (.npy) count only where no other image is found: other folders hold features and the like in such files.

    An id is the path relative to the root, with forward slashes. The root is the only folder, or the deepest folder
    that holds all of several paths. Raises RequestError for a path that does not exist, and where there is no image.
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    for path in paths:
        if not path.exists():
            raise RequestError(f"no such file or folder: {path}; give a folder of images")
    if not paths:
        raise RequestError("no paths were given; give a folder of images")
    # Absolute, so that an image that is named in two spellings is there once.
    absolute = [_absolute(path) for path in paths]
    root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in absolute]))
    walked = [file for path in absolute for file in _walk(path, _SUFFIXES)]
    walked = walked or [file for path in absolute for file in _walk(path, _ARRAYS)]
    files = {_id(file.relative_to(root)): file for file in walked}
    if not files:
        looked_for = ", ".join(sorted(_SUFFIXES))
        raise RequestError(f"no images in {', '.join(map(str, paths[:3]))}; looked for {looked_for}")
    # File systems list files in different orders; rows must not depend on that.
    return dict(sorted(files.items()))


def expand_folders(paths: Iterable[Path]) -> Iterator[Path]:
    """The files themselves, there or not, and the images of each folder in order of their names.

    Raises RequestError for a folder without images.
    """
    for path in paths:
        if path.is_dir():
            yield from image_files(path).values()
        else:
            yield path


def read_image_list(path: Path) -> dict[str, Path]:
    """id -> file in the order of a text file with one path a line; a relative one starts at the list's own folder.

    An id is the line, with forward slashes. Empty lines are skipped; a file that does not exist stays in, to be
    reported with the others that cannot be read. Raises RequestError for a file that cannot be read or is no list, and
    for a path that stands in it twice.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); give a folder or a list of paths") from error
    files: dict[str, Path] = {}
    for number, line in enumerate(lines, start=1):
        if b"\0" in line:
            raise RequestError(f"{path} is no list of paths: line {number} holds a zero byte; give one path a line")
        file = _path_in(line)
        if file is None:
            continue
        # After normalisation: a/b.jpg and ./a/b.jpg are the same file.
        id = _id(file)
        if id in files:
            raise RequestError(f"{path} names {id} twice, the second time in line {number}; leave one out")
        files[id] = path.parent / file
    if not files:
        raise RequestError(f"{path} names no images; write one path a line")
    return files


def _path_in(line: bytes) -> PurePath | None:
    # Editors on Windows leave a byte-order mark at the start of the file and a carriage return at the end of lines.
    bare = line.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\r")
    return PurePath(os.fsdecode(bare)) if bare.strip() else None


def _absolute(path: Path) -> Path:
    """Without dots and links; a link to an image keeps its own name."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _id(path: PurePath) -> str:
    # File names need not be text, but ids are shown, stored and sent: bytes that are none are spelt out.
    return path.as_posix().encode("utf-8", "backslashreplace").decode("utf-8")


def _walk(path: Path, suffixes: frozenset[str]) -> Iterable[Path]:
    if not path.is_dir():
        return [path]
    return [file for file in path.rglob("*") if _is_image(file, path, suffixes)]


def _is_image(file: Path, folder: Path, suffixes: frozenset[str]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() in suffixes and file.is_file()
