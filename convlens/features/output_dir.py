"""What a finished folder says of itself.

What decides the features: two runs may share a folder only where all of it agrees.

The folder that features are written to, and the order in which its files appear.

out/.partial/       everything while it grows: settings.json, journal.jsonl, the feature files, the tables
out/features*, out/*.parquet, out/thumbnails.bin     renamed into place when all pictures are done
out/manifest.json   comes last: a folder that has it is finished
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convlens.errors import RequestError
from convlens.features.embedder import Embedder
from convlens.features.journal import JournalEntry
from convlens.features.row_files import Format, flush, flush_folder
from convlens.features.tables import ROWS, THUMBNAILS, UNREADABLE


def manifest(
    settings: Mapping[str, Any], last: JournalEntry, names: Sequence[str], folders: Sequence[Path]
) -> dict[str, Any]:
    """The settings, the counts, and size and hash of each file, which lies in the first of the folders that has it.

    It holds neither times nor places, so that the same pictures make the same bytes.
    """
    counts = {"rows": last.total, "dimensions": last.dimensions, "unreadable": last.next - last.total}
    paths = [next(folder / name for folder in folders if (folder / name).exists()) for name in names]
    return {**settings, **counts, "dtype": "float32", "files": [_stored(path) for path in paths]}


def _stored(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"name": path.name, "bytes": file.tell(), "sha256": digest.hexdigest()}


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


PARTIAL, SETTINGS, MANIFEST = ".partial", "settings.json", "manifest.json"
_NAMES = "|".join(map(re.escape, (ROWS, UNREADABLE, THUMBNAILS, MANIFEST)))
_OURS = re.compile(rf"features\.npy|features-\d{{5,}}\.safetensors|{_NAMES}")


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder, made where it is missing, for this process alone; the kernel lets go of it after a kill.

    Raises RequestError while another process writes there, and for a folder that holds other things.
    """
    import fcntl  # POSIX only

    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _require_ours(out)
        yield
    except BlockingIOError as error:
        raise RequestError(f"{out} is being written by another process; wait until it is done") from error
    finally:
        os.close(descriptor)


def resume_or_create(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> Path:
    """The folder to go on in: that of a run with these very settings that was cut short, or a new one.

    With ``overwrite`` what other settings began is removed; a finished result stays until the new one is complete.
    Raises RequestError for a folder that is finished, or was begun with other settings, naming what differs.
    """
    partial = out / PARTIAL
    finished = (out / MANIFEST).exists()
    if finished and not overwrite:
        discard(partial)  # a kill came between the manifest and this
        raise RequestError(f"{out} is finished already; choose a new folder, or --overwrite to make it anew")
    there = _settings_of(partial)
    if there is not None and not differences(there, settings):
        return partial
    if there is not None and not overwrite:
        found = "; ".join(differences(there, settings))
        raise RequestError(
            f"{out} was begun with other settings: {found}; repeat the command that began it, choose a new folder, or "
            "--overwrite to begin anew"
        )
    discard(partial)
    partial.mkdir()
    _write(partial / SETTINGS, settings)
    return partial


def is_complete(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a whole run with these very settings lies there."""
    try:
        found = json.loads((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and all(found.get(name) == value for name, value in settings.items())


def finish(out: Path, names: Sequence[str], manifest: Mapping[str, Any]) -> None:
    """Rename the files of a complete run into place, older ones being removed; may be repeated after a kill."""
    partial = out / PARTIAL
    _write(partial / MANIFEST, manifest)
    (out / MANIFEST).unlink(missing_ok=True)
    for path in out.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in names:
            path.unlink()
    for name in names:
        if (partial / name).exists():
            (partial / name).replace(out / name)
    flush_folder(out)
    (partial / MANIFEST).replace(out / MANIFEST)
    flush_folder(out)
    discard(partial)


def discard(partial: Path) -> None:
    """Remove what was begun; without its settings, of which a kill leaves it none, nothing of it counts any more."""
    (partial / SETTINGS).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)


def _require_ours(out: Path) -> None:
    """Hidden files, such as file managers leave, may stay; files named as ours must come with a run of ours."""
    found = sorted(path.name for path in out.iterdir())
    ran = MANIFEST in found or PARTIAL in found
    foreign = [name for name in found if not name.startswith(".") and not (ran and _OURS.fullmatch(name))]
    if foreign:
        raise RequestError(
            f"{out} holds other things than features ({', '.join(foreign[:3])}); choose a new or empty folder"
        )


def _settings_of(partial: Path) -> dict[str, Any] | None:
    """None where no run began; a kill before the settings were whole left nothing that counts."""
    try:
        found = json.loads((partial / SETTINGS).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, values: Mapping[str, Any]) -> None:
    beside = path.with_name(f"{path.name}.next")
    with beside.open("wb") as file:
        file.write(json.dumps(values, indent=1).encode("ascii") + b"\n")
        flush(file)
    beside.replace(path)
