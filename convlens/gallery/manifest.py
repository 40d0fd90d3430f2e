"""What one version of a gallery must hold: counts, the weights it belongs to, and the hash of every file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from convlens.errors import GalleryError
from convlens.gallery.features import FeatureSpace, require_space
from convlens.gallery.hubness import Hubness
from convlens.gallery.indexing import EXACT, IndexRecord

FORMAT = 2
MANIFEST, VECTORS, ENTRIES, THUMBNAILS = "manifest.json", "vectors.npy", "entries.jsonl", "thumbnails.bin"
INDEX = "index.faiss"
FILES = (VECTORS, ENTRIES, THUMBNAILS)


@dataclass(frozen=True)
class Stored:
    """Size and sha256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """``count`` pictures with ``dimensions`` features each. ``files`` lists every other file of the version.

    ``index`` says how neighbours are found, ``hubness`` how evenly they are spread.
    """

    count: int
    dimensions: int
    feature_space: FeatureSpace
    weights_sha256: str
    model: str
    embedding_layer: str
    files: Mapping[str, Stored]
    index: IndexRecord = EXACT
    hubness: Hubness | None = None
    created_by: Mapping[str, str] = field(default_factory=lambda: _versions())
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode() + b"\n"


def version_name(manifest: bytes) -> str:
    """The name of a version's folder: v- and the first 16 digits of its manifest's sha256."""
    return f"v-{hashlib.sha256(manifest).hexdigest()[:16]}"


def read_manifest(folder: Path) -> Manifest:
    """Raises GalleryError for a missing, damaged or foreign manifest."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
        if version_name(data) != folder.name:
            raise _refused(path, f"is damaged: its content does not belong to {folder.name}")
        fields = json.loads(data)
        if fields["format"] != FORMAT:
            raise _refused(path, f"has format {fields['format']}, this version reads {FORMAT}")
        index = IndexRecord(**fields["index"])
        names = FILES if index.kind == "exact" else (*FILES, INDEX)
        files = {name: Stored(**fields["files"][name]) for name in names}
        hubness = Hubness(**fields["hubness"]) if fields["hubness"] else None
        manifest = Manifest(**{**fields, "files": files, "index": index, "hubness": hubness})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _refused(path, f"is missing or damaged ({type(error).__name__})") from error
    require_space(manifest.feature_space)
    return manifest


def verify_sizes(manifest: Manifest, folder: Path) -> None:
    """Raises GalleryError, naming the file, for one that is missing, longer or shorter."""
    for name, stored in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _refused(path, f"is missing ({error.strerror})") from error
        if size != stored.bytes:
            raise _refused(path, f"has {size} bytes instead of {stored.bytes}")


def verify_hashes(manifest: Manifest, folder: Path) -> None:
    """Raises GalleryError, naming the file, for one of other content."""
    for name, expected in manifest.files.items():
        path = folder / name
        try:
            found = stored(path)
        except OSError as error:
            raise _refused(path, f"cannot be read ({error.strerror})") from error
        if found != expected:
            raise _refused(path, "is damaged: its content is not what was written")


def stored(path: Path) -> Stored:
    """Size and hash of a file, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return Stored(file.tell(), digest.hexdigest())


def _refused(path: Path, reason: str) -> GalleryError:
    return GalleryError(f"{path} {reason}; build the gallery again with `convlens gallery build`")


def _versions() -> dict[str, str]:
    return {"convlens": _version("convlens"), "numpy": np.__version__, "faiss": _version("faiss-cpu")}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from its source
        return "unknown"
