"""Files and folders that are there whole or not at all, their hashes, and a lock that no kill leaves behind."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from convlens.errors import ConvLensError, RequestError


@contextmanager
def atomic_write(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """The path of a draft beside ``path``, to be written within the ``with``; it then takes the place of ``path``.

    After an error, raised here as it is, the draft is removed and ``path`` is as it was. A kill may leave the draft,
    ``.part.NAME``, which the next write takes over; with ``shared`` each process has a draft of its own, for files that
    several may write at the same time. The folder must exist.
    """
    # The suffix stays at the end: video encoders choose the container by it.
    draft = path.with_name(f".part.{os.getpid()}.{path.name}" if shared else f".part.{path.name}")
    try:
        yield draft
        # Before the rename: after a power cut the new name could otherwise stand for an empty file.
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def require_writable(folder: Path, *, path: Path | None = None) -> None:
    """RequestError, before any work, where no file can be made in the folder, or it cannot be made itself.

    ``path`` is what the error names, by default the folder.
    """
    path, place = path or folder, folder
    try:
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise RequestError(f"{path} cannot be written: {place} is no folder; choose another place", field="output")
        # Tried, not asked for: permissions say nothing of a full disk, a quota or a disk that is read-only.
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise RequestError(
            f"{path} cannot be written ({error.strerror or error}); make room, or choose another folder",
            field="output",
        ) from error


def require_writable_file(path: Path) -> None:
    """The same for a file, which may be there already."""
    if path.is_dir():
        raise RequestError(f"{path} is a folder; name a file", field="output")
    require_writable(path.parent, path=path)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder``, to be filled within the ``with``; it then takes the place of ``folder``.

    After an error it is removed. The caller has made sure that what ``folder`` holds may go.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        draft.chmod(0o755)  # mkdtemp lets nobody else in
        yield draft
        _swap(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _swap(draft: Path, folder: Path) -> None:
    if not folder.exists():
        draft.rename(folder)
        return
    # A folder cannot be renamed over one that is not empty: the old one steps aside first.
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
    folder.rename(old / "folder")
    draft.rename(folder)
    shutil.rmtree(old)


@contextmanager
def exclusive_lock(path: Path, *, busy: ConvLensError | None) -> Iterator[None]:
    """Hold ``path`` for this process alone.

    Where another process (or thread) holds it, ``busy`` is raised at once; with None this waits until it is free.

    A folder is locked as it is, without a file in it; a file is made where there is none, and stays. The lock ends with
    the ``with`` or with the process, however that dies. Raises OSError where ``path`` cannot be opened.
    """
    from filelock import lock_descriptor  # here: 60 ms, which reading alone need not pay

    # The descriptor's lock, not filelock.FileLock: that one cannot lock a folder, and would leave a file in galleries,
    # which are copied and served from read-only places.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not lock_descriptor(descriptor, blocking=busy is None) and busy is not None:
            raise busy
        yield
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """The sha256 of a file's bytes in hexadecimal, read in pieces. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(file: IO[Any]) -> None:
    """Have what was written to an open file reach the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have names that were made, changed or removed in a folder reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def package_version(package: str) -> str:
    """The installed version of a package, ``unknown`` where it is not installed, as ConvLens run from its source."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
