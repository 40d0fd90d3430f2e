"""Archives as the unit that is served: a .mar file or its unpacked folder, unpacked once on each machine."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import yaml

from convlens.errors import ServerError
from convlens.torchserve.archive import entries, read_manifest

_MANIFEST = Path("MAR-INF") / "MANIFEST.json"
_KEPT = "convlens-archives"


@dataclass(frozen=True)
class ServedEntry:
    """A model entry: its name in requests, the archive or its folder, and what the archive says of it.

    ``fingerprint`` changes with the archive, so that to serve another one under the same path replaces the replicas.
    """

    name: str
    archive: str
    version: str
    config: Mapping[str, Any]
    fingerprint: str

    @property
    def batch_size(self) -> int:
        return max(1, int(self.config.get("batchSize") or 1))

    @property
    def response_timeout_s(self) -> float:
        return float(self.config.get("responseTimeout") or 120)

    @property
    def section(self) -> Mapping[str, Any]:
        """What the configuration says to the handler."""
        return dict(self.config.get("convlens") or {})

    @property
    def sweeps_at(self) -> str:
        """The entry that answers sweeps; empty where this one does."""
        other = str(self.section.get("sweeps_at") or "")
        return "" if other == self.name else other


def served_entries(archives: Mapping[str, str]) -> list[ServedEntry]:
    """The entries of these archives (name -> path), with those for sweeps that they name. Raises ServerError."""
    found: dict[str, ServedEntry] = {}
    for name, archive in archives.items():
        path = Path(archive).absolute()
        names = [name, *_sweep_entries(path, name)]
        found |= {each: _entry(each, path) for each in names if each not in found}
    return list(found.values())


def _sweep_entries(path: Path, name: str) -> list[str]:
    if path.is_dir():
        other = _entry(name, path).sweeps_at
        return [other] if other else []
    return [each for each in entries(path, name=name) if each != name]


def _entry(name: str, path: Path) -> ServedEntry:
    if path.is_dir():
        model, config = _folder_manifest(path)
        return ServedEntry(name, str(path), str(model.get("modelVersion") or "1.0"), config, _stamp(path / _MANIFEST))
    manifest = read_manifest(path)
    return ServedEntry(name, str(path), manifest.version or "1.0", manifest.config, _mark(path))


def _folder_manifest(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the manifest in an unpacked archive says of the model, and its configuration."""
    try:
        model = dict(json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["model"])
        config = yaml.safe_load((folder / model["configFile"]).read_text("utf-8")) if "configFile" in model else {}
    except (OSError, KeyError, ValueError, yaml.YAMLError) as error:
        raise ServerError(
            f"{folder} is no unpacked archive ({error}); give a .mar, or the folder it unpacks to"
        ) from error
    return model, dict(config or {})


def _mark(archive: Path) -> str:
    """Of the whole contents, where ``convlens archive`` built it; else by size and time of the file."""
    with zipfile.ZipFile(archive) as opened:
        return opened.comment.decode("ascii", errors="replace") or _stamp(archive)


def _stamp(path: Path) -> str:
    status = path.stat()
    return hashlib.sha256(f"{path}{status.st_size}{status.st_mtime_ns}".encode()).hexdigest()


# --- on the machine of a replica --------------------------------------------------------------------------------------


def unpacked(entry: ServedEntry) -> Path:
    """The archive's folder on this machine; unpacked once, for all replicas that run here.

    Raises ServerError where the archive is not to be found: it must lie where every machine of the cluster sees it.
    """
    path = Path(entry.archive)
    if path.is_dir():
        return path
    if not path.is_file():
        raise ServerError(f"no archive {path} on this machine; every machine of the cluster must find it there")
    store = Path(tempfile.gettempdir()) / f"{_KEPT}-{os.getuid()}"
    store.mkdir(mode=0o700, exist_ok=True)
    if store.stat().st_uid != os.getuid():
        raise ServerError(f"{store} belongs to another user; set TMPDIR to a folder of your own")
    folder = store / hashlib.sha256(f"{path}{entry.fingerprint}".encode()).hexdigest()[:32]
    if not folder.is_dir():
        draft = Path(tempfile.mkdtemp(dir=store, prefix=".part-"))
        with zipfile.ZipFile(path) as opened:
            opened.extractall(draft)
        try:
            draft.rename(folder)
        except OSError:  # another replica was quicker
            shutil.rmtree(draft, ignore_errors=True)
    return folder


class Handler(Protocol):
    """What TorchServe, and a replica, ask of the class in a handler's file."""

    def initialize(self, context: Any) -> None: ...
    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str | bytes]: ...


def load_handler(folder: Path) -> Callable[[], Handler]:
    """The only class in the archive's handler file, which runs with the installed convlens. Raises ServerError."""
    model, _ = _folder_manifest(folder)
    file = folder / str(model.get("handler", ""))
    module = _run(file)
    classes = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    if len(classes) != 1:
        raise ServerError(f"{file} should hold one class, the handler; it holds {len(classes)}")
    return classes[0]


def _run(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"convlens_archive_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ServerError(f"no handler {file} in the archive")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
