"""Versions of a gallery: what each must hold, and how one takes the place of another.

    gallery/CURRENT              v-3f0c…: the current version, named after its manifest's sha256
    gallery/v-3f0c…/             its files, never changed again; manifest.json has the hash of every other one
    gallery/.building/           a version being written, unseen

The one step that readers can see is the replacement of CURRENT, which the file system does whole or not at all: a kill
at any moment leaves the old version or the new one, and reading needs no repair, so that a gallery may be read-only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from convlens.errors import GalleryError
from convlens.gallery.index import EXACT, Hubness, IndexRecord
from convlens.gallery.vectors import FeatureSpace, require_space
from convlens.utils.files import atomic_write, exclusive_lock, package_version, sha256_of_file, sync_folder

MANIFEST, VECTORS, ENTRIES, THUMBNAILS = "manifest.json", "vectors.npy", "entries.jsonl", "thumbnails.bin"
INDEX = "index.faiss"
FILES = (VECTORS, ENTRIES, THUMBNAILS)
_FORMAT = 2
_CURRENT, _BUILDING = "CURRENT", ".building"
_VERSION = re.compile(r"v-[0-9a-f]{16}")


@dataclass(frozen=True)
class FileRecord:
    """Size and sha256 of one file."""

    bytes: int
    sha256: str


def file_record(path: Path) -> FileRecord:
    """The record of a file as it is on disk."""
    return FileRecord(path.stat().st_size, sha256_of_file(path))


# The fields, and those of FileRecord, IndexRecord and Hubness, are the keys of manifest.json.
@dataclass(frozen=True)
class Manifest:
    """``count`` images with ``dimensions`` features each. ``files`` lists every other file of the version.

    ``index`` says how neighbours are found, ``hubness`` how evenly they are spread.
    """

    count: int
    dimensions: int
    feature_space: FeatureSpace
    weights_sha256: str
    model: str
    embedding_layer: str
    files: Mapping[str, FileRecord]
    index: IndexRecord = EXACT
    hubness: Hubness | None = None
    created_by: Mapping[str, str] = field(default_factory=lambda: _library_versions())
    format: int = _FORMAT

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode() + b"\n"


def version_name(manifest: bytes) -> str:
    """The name of a version's folder: v- and the first 16 digits of its manifest's sha256."""
    return f"v-{hashlib.sha256(manifest).hexdigest()[:16]}"


def read_manifest(folder: Path) -> Manifest:
    """Raises GalleryError for a manifest that is missing, damaged, or of another version or format."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
        # The folder's name is the manifest's hash: the file that has all other hashes is checked as well.
        if version_name(data) != folder.name:
            raise _refusal(path, f"is damaged: its content does not belong to {folder.name}")
        fields = json.loads(data)
        if fields["format"] != _FORMAT:
            raise _refusal(path, f"has format {fields['format']}, this version reads {_FORMAT}")
        index = IndexRecord(**fields["index"])
        names = FILES if index.kind == "exact" else (*FILES, INDEX)
        files = {name: FileRecord(**fields["files"][name]) for name in names}
        hubness = Hubness(**fields["hubness"]) if fields["hubness"] else None
        manifest = Manifest(**{**fields, "files": files, "index": index, "hubness": hubness})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _refusal(path, f"is missing or damaged ({type(error).__name__})") from error
    require_space(manifest.feature_space)
    return manifest


def verify_sizes(manifest: Manifest, folder: Path) -> None:
    """Raises GalleryError, naming the file, for one that is missing, longer or shorter."""
    for name, record in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _refusal(path, f"is missing ({error.strerror})") from error
        if size != record.bytes:
            raise _refusal(path, f"has {size} bytes instead of {record.bytes}")


def verify_hashes(manifest: Manifest, folder: Path) -> None:
    """Raises GalleryError, naming the file, for one of other content."""
    for name, expected in manifest.files.items():
        path = folder / name
        try:
            record = file_record(path)
        except OSError as error:
            raise _refusal(path, f"cannot be read ({error.strerror})") from error
        if record != expected:
            raise _refusal(path, "is damaged: its content is not what was written")


def _refusal(path: Path, reason: str) -> GalleryError:
    return GalleryError(f"{path} {reason}; build the gallery again with `convlens gallery build`")


def _library_versions() -> dict[str, str]:
    # For a person who looks into the manifest; nothing depends on them.
    return {"convlens": package_version("convlens"), "numpy": np.__version__, "faiss": package_version("faiss-cpu")}


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
    """An empty folder to write a version into; at the end it is removed unless it was published, as older versions are.

    Raises GalleryError while another process writes into the same gallery, and for a folder that holds other things.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = GalleryError(f"{folder} is being written by another process; wait until it is done")
    with exclusive_lock(folder, busy=busy):
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
    # The name is the content's: the same gallery written again is the same folder, which may be there already.
    target = folder / name
    if not _intact(target):
        shutil.rmtree(target, ignore_errors=True)  # the very same version, damaged since it was written
        sync_folder(building)
        building.rename(target)
        sync_folder(folder)
    with atomic_write(folder / _CURRENT) as draft:
        draft.write_bytes(f"{name}\n".encode("ascii"))


def _intact(version: Path) -> bool:
    try:
        verify_hashes(read_manifest(version), version)
    except GalleryError:
        return False
    return True


def require_ours(folder: Path) -> None:
    """Raises GalleryError for a file, and for a folder that holds other things than a gallery."""
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
    """Remove what no reader can see any more; where that fails, the next writer tries again."""
    leftovers = [folder / _BUILDING]
    with contextlib.suppress(GalleryError):  # with an unreadable CURRENT, versions stay for a person to look at
        kept = current(folder)
        leftovers += [path for path in folder.iterdir() if _VERSION.fullmatch(path.name) and path != kept]
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
