"""The folder of an extraction: which runs may share it, and the order in which its files appear.

out/.partial/       everything while it grows: settings.json, journal.jsonl, the feature files, the tables
out/features*, out/*.parquet, out/thumbnails.bin     renamed into place when all images are done
out/manifest.json   comes last: a folder that has it is complete
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convlens.errors import RequestError
from convlens.features.embedder import Embedder
from convlens.features.journal import JOURNAL, JournalEntry, read_journal
from convlens.features.row_files import Format
from convlens.features.tables import ROWS, THUMBNAILS, UNREADABLE
from convlens.utils.files import (
    atomic_write,
    exclusive_lock,
    package_version,
    require_writable,
    sha256_of_file,
    sync_folder,
)

PARTIAL, MANIFEST = ".partial", "manifest.json"
_SETTINGS = "settings.json"
_VERSION = 2
_LIBRARIES = ("convlens", "numpy", "pillow", "torch")
_NAMES = "|".join(map(re.escape, (ROWS, UNREADABLE, THUMBNAILS, MANIFEST)))
_OURS = re.compile(rf"features\.npy|features-\d{{5,}}\.safetensors|{_NAMES}")


def run_settings(
    files: Mapping[str, Path],
    embedder: Embedder,
    *,
    format: Format,
    batch: int,
    thumbnail_side: int,
    shard_rows: int | None,
    part: int | None,
) -> dict[str, Any]:
    """All that decides the features, as JSON values: two runs share a folder only where all of it agrees.

    ``part`` is how many images a process of a cluster embeds at a time, None without a cluster.
    """
    spec = embedder.spec
    settings = {
        "version": _VERSION,
        "format": format,
        "batch": batch,  # it moves the last digits of float32
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
        # Left out where they say nothing new, so that earlier runs are found again.
        **({"crop_mode": spec.crop_mode} if spec.crop_mode != "center" else {}),
        **({"crop_width": spec.crop_width} if spec.crop_width else {}),
        **({"resize_width": spec.resize_width} if spec.resize_width else {}),
        "versions": _versions(embedder),
        "shard_rows": shard_rows,
    }
    # Batches end where a part ends, so the size of parts moves last digits as the batch size does.
    return settings if part is None else settings | {"part": part}


def _list_sha256(files: Mapping[str, Path]) -> str:
    """Over ids and sizes: other images of the same names are another list."""
    # Not over contents: that would read every file once more before the first is embedded.
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
    # Another version may decode, resize or add differently in the last digit.
    packages = list(_LIBRARIES)
    if embedder.graph_sha256:  # onnxruntime comes in several wheels
        packages += importlib.metadata.packages_distributions().get("onnxruntime", [])[:1]
    return {name: package_version(name) for name in packages}


def require_usable(out: Path, *, overwrite: bool) -> None:
    """RequestError, before any work, for a folder that an extraction refuses whatever its settings are."""
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; choose a new folder")
    require_writable(out)
    if not out.is_dir():
        return
    _require_ours(out)
    if (out / MANIFEST).exists() and not overwrite:
        raise RequestError(f"{out} is finished already; choose a new folder, or --overwrite to make it anew")


@contextlib.contextmanager
def exclusive_output_dir(out: Path) -> Iterator[None]:
    """The folder, made where it is missing, for this process alone.

    Raises RequestError while another process writes there, for a file, and for a folder that holds other things.
    """
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    busy = RequestError(f"{out} is being written by another process; wait until it is done")
    with exclusive_lock(out, busy=busy):
        _require_ours(out)
        yield


def _require_ours(out: Path) -> None:
    names = sorted(path.name for path in out.iterdir())
    # Files with our names count as ours only beside a trace of a run. Hidden ones, which file managers leave, may stay.
    ran = MANIFEST in names or PARTIAL in names
    foreign = [name for name in names if not name.startswith(".") and not (ran and _OURS.fullmatch(name))]
    if foreign:
        raise RequestError(
            f"{out} holds other things than features ({', '.join(foreign[:3])}); choose a new or empty folder"
        )


def resume_or_create(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> Path:
    """The folder to write in: that of an interrupted run with these very settings, or a new one.

    With ``overwrite`` a run begun with other settings is removed; a complete result stays until the new one is
    complete. Raises RequestError for a folder that is complete, or was begun with other settings, naming what differs.
    """
    partial = out / PARTIAL
    complete = (out / MANIFEST).exists()
    if complete and not overwrite:
        discard(partial)  # left where a kill came between the manifest and its removal
        raise RequestError(f"{out} is finished already; choose a new folder, or --overwrite to make it anew")
    # None too where a kill came before the settings were whole: nothing of that run counts.
    previous = _read_json(partial / _SETTINGS)
    differences = "" if previous is None else _differences(previous, settings)
    if previous is not None and not differences:
        return partial
    if differences and not overwrite:
        raise RequestError(
            f"{out} was begun with other settings: {differences}; repeat the command that began it, choose a new "
            "folder, or --overwrite to start again"
        )
    discard(partial)
    partial.mkdir()
    _write_json(partial / _SETTINGS, settings)
    return partial


def interrupted_runtime(out: Path) -> str:
    """The runtime of the run that was begun in this folder and can be resumed; empty where there is none."""
    settings = _read_json(out / PARTIAL / _SETTINGS) or {}
    return str(settings.get("runtime", ""))


def interrupted_images(out: Path) -> int:
    """How many images the run that was begun in this folder has done; those that could not be read are among them."""
    journal = out / PARTIAL / JOURNAL
    return max((entry.next for entry in read_journal(journal)), default=0) if journal.is_file() else 0


def _differences(previous: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    names = [*settings, *(name for name in previous if name not in settings)]
    return "; ".join(
        f"{name} was {previous.get(name)} and is {settings.get(name)}"
        for name in names
        if previous.get(name) != settings.get(name)
    )


def is_complete(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder holds the result of a whole run with these very settings."""
    manifest = _read_json(out / MANIFEST)
    return manifest is not None and all(manifest.get(name) == value for name, value in settings.items())


def publish(out: Path, names: Sequence[str], settings: Mapping[str, Any], last: JournalEntry) -> None:
    """Rename the files of a complete run into place and remove older ones; may be repeated after a kill."""
    partial = out / PARTIAL
    # The new manifest is complete before the old one goes: between the two the folder counts as interrupted, and the
    # same command repeats this function.
    _write_json(partial / MANIFEST, _manifest(out, names, settings, last))
    (out / MANIFEST).unlink(missing_ok=True)
    for path in out.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in names:
            path.unlink()
    for name in names:
        if (partial / name).exists():
            (partial / name).replace(out / name)
    sync_folder(out)  # the manifest's name must not reach the disk before the others'
    (partial / MANIFEST).replace(out / MANIFEST)
    sync_folder(out)
    discard(partial)


def _manifest(out: Path, names: Sequence[str], settings: Mapping[str, Any], last: JournalEntry) -> dict[str, Any]:
    """Settings, counts, size and hash of each file; no times and no places: the same images make the same bytes."""
    counts = {"rows": last.total, "dimensions": last.dimensions, "unreadable": last.next - last.total}
    # After a kill some files lie in their final place already.
    paths = [next(folder / name for folder in (out / PARTIAL, out) if (folder / name).exists()) for name in names]
    files = [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of_file(path)} for path in paths]
    return {**settings, **counts, "dtype": "float32", "files": files}


def discard(partial: Path) -> None:
    """Remove an interrupted run."""
    # Settings first: without them the rest, of which a kill may leave some, no longer counts.
    (partial / _SETTINGS).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_write(path) as draft:
        draft.write_bytes(json.dumps(values, indent=1).encode("ascii") + b"\n")
