"""A gallery folder holds versions, and one small file says which is the current one.

    gallery/CURRENT              v-3f0c…: the current version, named after its manifest's sha256
    gallery/v-3f0c…/             its files, never changed again
    gallery/.building/           a version being written, unseen

The one step that readers can see is the replacement of CURRENT, which the file system does whole or not at all: a kill
at any moment leaves the old version or the new one, and reading needs no repair, so that a gallery may be read-only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from convlens.errors import GalleryError
from convlens.gallery.manifest import read_manifest, verify_hashes

_CURRENT, _NEXT, _BUILDING = "CURRENT", ".CURRENT.next", ".building"
_VERSION = re.compile(r"v-[0-9a-f]{16}")


def current(folder: Path) -> Path:
    """The folder of the current version. Raises GalleryError where there is no gallery."""
    path = folder / _CURRENT
    try:
        line = path.read_bytes().decode("latin-1")
    except OSError as error:
        raise GalleryError(f"no gallery in {folder}; make one with `convlens gallery build`") from error
    name = line.removesuffix("\n")
    if not _VERSION.fullmatch(name) or line != f"{name}\n":
        raise GalleryError(f"{path} is damaged; build the gallery again with `convlens gallery build`")
    return folder / name


@contextlib.contextmanager
def new_version(folder: Path) -> Iterator[Path]:
    """An empty folder to write a version into; what was not published by the end is removed, older versions are too.

    Raises GalleryError while another process writes into the same gallery, and for a folder that holds other things.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        require_ours(folder)
        building = folder / _BUILDING
        shutil.rmtree(building, ignore_errors=True)  # left there by a kill
        building.mkdir()
        try:
            yield building
        finally:
            _tidy(folder)


def publish(building: Path, name: str) -> None:
    """Make the finished version the current one; its files have been flushed to disk already."""
    folder = building.parent
    target = folder / name
    if not _intact(target):
        shutil.rmtree(target, ignore_errors=True)  # the very same version, damaged since it was written
        _flush_folder(building)
        building.rename(target)
        _flush_folder(folder)
    with (folder / _NEXT).open("wb") as file:
        file.write(f"{name}\n".encode("ascii"))
        flush(file)
    (folder / _NEXT).replace(folder / _CURRENT)
    _flush_folder(folder)


def flush(file: BinaryIO) -> None:
    """Have what was written reach the disk."""
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _intact(version: Path) -> bool:
    try:
        verify_hashes(read_manifest(version), version)
    except GalleryError:
        return False
    return True


def require_ours(folder: Path) -> None:
    """GalleryError for a file, and for a folder that holds other things than a gallery."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise GalleryError(f"{folder} cannot be written (it is a file); choose another folder")
    foreign = sorted(path.name for path in folder.iterdir() if not _is_ours(path.name))
    if foreign:
        raise GalleryError(
            f"{folder} holds other things than a gallery ({', '.join(foreign[:3])}); choose a new or empty folder"
        )


def _is_ours(name: str) -> bool:
    """Hidden files, such as file managers leave, count as ours; they are never touched."""
    return name == _CURRENT or name.startswith(".") or _VERSION.fullmatch(name) is not None


def _tidy(folder: Path) -> None:
    """Remove what no reader can see any more; where that fails, the next writing tries again."""
    leftovers = [folder / _BUILDING]
    with contextlib.suppress(GalleryError):  # with an unreadable CURRENT, versions stay for a person to look at
        kept = current(folder)
        leftovers += [path for path in folder.iterdir() if _VERSION.fullmatch(path.name) and path != kept]
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Held by the kernel for the process, so that a kill leaves no lock behind."""
    import fcntl  # POSIX only; here, because reading a gallery must work without

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise GalleryError(f"{folder} is being written by another process; wait until it is done") from error
    finally:
        os.close(descriptor)
