"""What decides the features: two runs may share a folder only where all of it agrees."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convlens.bulk.embedder import Embedder
from convlens.bulk.layouts import Format

VERSION = 2
_LIBRARIES = ("convlens", "numpy", "pillow", "torch")


def settings(
    files: Mapping[str, Path], embedder: Embedder, *, format: Format, batch: int, thumbnail_side: int = 0
) -> dict[str, Any]:
    """By name, fit for JSON. The batch size belongs to them: it moves the last digits of float32."""
    spec = embedder.spec
    return {
        "version": VERSION,
        "format": format,
        "batch": batch,
        "thumbnail_side": thumbnail_side,
        "pictures": len(files),
        "list_sha256": _list_sha256(files),
        "model": spec.name,
        "weights_sha256": spec.weights_sha256,
        "embedding_layer": spec.embedding_layer,
        "runtime": embedder.runtime,
        "device": embedder.device,
        "graph_sha256": embedder.graph_sha256,
        "precision": embedder.precision,
        "crop": spec.crop,
        "resize": spec.resize,
        "interpolation": spec.interpolation,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "versions": _versions(embedder),
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What disagrees, in words."""
    names = [*here, *(name for name in there if name not in here)]
    return [
        f"{name} was {there.get(name)} and is {here.get(name)}" for name in names if there.get(name) != here.get(name)
    ]


def _list_sha256(files: Mapping[str, Path]) -> str:
    """Over ids and sizes: other pictures of the same names are another list."""
    digest = hashlib.sha256()
    for id, path in files.items():
        digest.update(f"{id}\0{_size(path)}\0".encode())
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it will be among the unreadable
        return -1


def _versions(embedder: Embedder) -> dict[str, str]:
    packages = list(_LIBRARIES)
    if embedder.graph_sha256:  # there are several wheels of it
        packages += importlib.metadata.packages_distributions().get("onnxruntime", [])[:1]
    return {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from its source
        return "unknown"
