"""Archives (.mar) that TorchServe serves: what is in them, when one must be built anew, and the entries made of one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from convlens.errors import ServerError
from convlens.torchserve.archive_config import ArchiveOptions, model_config, require_name
from convlens.torchserve.server_config import handlers_folder, package_folder

SWEEP_SUFFIX = "_sweep"  # usual ending of the name of the entry that answers sweeps

_MANIFEST, _CONFIG = "MAR-INF/MANIFEST.json", "model-config.yaml"
_MODEL, _GALLERY, _GRAPHS = "model", "gallery", "graphs"
# The version of torch-model-archiver whose archives these equal, but for dates and compression.
_ARCHIVER_VERSION = "0.12.0"
_PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".joblib"}
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can name
_CHUNK = 1 << 20


def build(
    *,
    name: str,
    model_dir: Path | None,
    store: Path,
    gallery: Path | None = None,
    graphs: Path | None = None,
    version: str = "1.0",
    options: ArchiveOptions | None = None,
) -> Path:
    """Write ``store/NAME.mar`` from what ``convlens.models.pack`` wrote to ``model_dir``, and return its path.

    ``graphs`` is a folder of exported graphs: beside a model they run its sweeps; without one, as ``export.bundle``
    wrote it, they are the model.
    Same inputs, same bytes. Written beside, then renamed: a server that loads it now gets the old or the new one.
    Raises ServerError.
    """
    recipe = _recipe(name, model_dir, gallery, graphs, version, options or ArchiveOptions())
    mark = recipe.fingerprint()  # before the files are copied: one that changes meanwhile makes the archive outdated
    store.mkdir(parents=True, exist_ok=True)
    path = store / f"{name}.mar"
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(part, "w") as archive:
            archive.comment = mark.encode("ascii")
            recipe.write(archive)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def fingerprint(
    *,
    name: str,
    model_dir: Path | None,
    gallery: Path | None = None,
    graphs: Path | None = None,
    version: str = "1.0",
    options: ArchiveOptions | None = None,
) -> str:
    """sha256 over everything ``build`` would put into the archive. Raises ServerError as ``build`` does."""
    return _recipe(name, model_dir, gallery, graphs, version, options or ArchiveOptions()).fingerprint()


def is_current(path: Path, fingerprint: str) -> bool:
    """Whether the archive is there, whole and made from inputs of this fingerprint."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment.decode("ascii", errors="replace") == fingerprint
    except (OSError, zipfile.BadZipFile):
        return False


@dataclass(frozen=True)
class Manifest:
    """Name and version the archive was built for, its configuration, and the workers TorchServe starts for it."""

    name: str
    version: str
    config: dict[str, Any]

    @property
    def workers(self) -> int:
        """``minWorkers``; one where the configuration names none."""
        return max(1, int(self.config.get("minWorkers", 1)))


def read_manifest(archive: Path) -> Manifest:
    """Raises ServerError for a file that is missing or no archive.

    TorchServe itself would unpack a file that is no zip to nothing, and retry a dying worker for five minutes.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            model = json.loads(opened.read(_MANIFEST))["model"]
            config = yaml.safe_load(opened.read(model["configFile"])) if "configFile" in model else {}
            return Manifest(model["modelName"], model.get("modelVersion", ""), config or {})
    except FileNotFoundError as error:
        raise ServerError(f"no archive {archive}; build one with `convlens archive`") from error
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, yaml.YAMLError) as error:
        raise ServerError(f"{archive} is no TorchServe archive ({error}); build it anew") from error


def holds_network(archive: Path) -> bool:
    """Whether a network is packed in it, and not exported graphs alone. Raises ServerError as ``read_manifest``."""
    read_manifest(archive)
    with zipfile.ZipFile(archive) as opened:
        return any(name.startswith(f"{_MODEL}/") for name in opened.namelist())


def entries(archive: Path, *, name: str = "") -> dict[str, Path]:
    """Entry -> archive: ``name`` (by default the one it was built for) and, where the archive says so, the entry that
    answers what is heavy, under the name that it says. Raises ServerError for a bad archive.

    Both are one archive with workers of their own, so that sweeps that queue in one keep no prediction waiting in the
    other.
    """
    manifest = read_manifest(archive)
    quick = name or manifest.name
    sweeps_at = str((manifest.config.get("convlens") or {}).get("sweeps_at") or "")
    return {quick: archive} | ({sweeps_at: archive} if sweeps_at else {})


@dataclass(frozen=True)
class _Recipe:
    """Everything an archive is made of; ``files`` is name inside the archive -> file."""

    name: str
    version: str
    handler: Path
    config: str
    files: Mapping[str, Path]

    def fingerprint(self) -> str:
        facts = [self.name, self.version, self.handler.name, _sha256(self.handler), self.config, _ARCHIVER_VERSION]
        files = {name: _sha256(path) for name, path in self.files.items()}
        return hashlib.sha256(json.dumps([facts, files], sort_keys=True).encode()).hexdigest()

    def write(self, archive: zipfile.ZipFile) -> None:
        """Sorted, undated and uncompressed: weights hardly shrink, and zlib's versions differ in their bytes."""
        handler = self.handler.resolve()
        members: dict[str, Path | str] = {**self.files, handler.name: handler}
        members |= {_CONFIG: self.config, _MANIFEST: self._manifest(handler.name)}
        for name in sorted(members, key=lambda name: name.split("/")):
            _add(archive, name, members[name])

    def _manifest(self, handler: str) -> str:
        """As torch-model-archiver writes it, but for a creation date that is always the same."""
        model = {"modelName": self.name, "handler": handler, "modelVersion": self.version, "configFile": _CONFIG}
        facts = {"archiverVersion": _ARCHIVER_VERSION, "createdOn": "01/01/1980 00:00:00", "runtime": "python"}
        given = {key: value for key, value in model.items() if value}  # no version is no key
        return json.dumps(facts | {"model": given}, indent=2, sort_keys=True)


def _recipe(
    name: str,
    model_dir: Path | None,
    gallery: Path | None,
    graphs: Path | None,
    version: str,
    options: ArchiveOptions,
) -> _Recipe:
    usual = "onnx_handler.py" if graphs is not None and model_dir is None else "convlens_handler.py"
    handler = options.handler or handlers_folder() / usual
    if not handler.is_file():
        raise ServerError(f"no handler {handler}")
    config = model_config(options, gallery=_GALLERY if gallery else None, graphs=_GRAPHS if graphs else None)
    return _Recipe(require_name(name), version, handler, config, _contents(model_dir, gallery, graphs))


def _contents(model_dir: Path | None, gallery: Path | None, graphs: Path | None) -> dict[str, Path]:
    """Name inside the archive -> file: the package's source, the packed model, the gallery and the graphs.

    The package travels along so that a stock TorchServe can serve the archive, and always by the code it was built
    with. Raises ServerError for a missing or empty folder, and for pickles, which can run code when loaded.
    """
    folders = {"convlens": package_folder(), _MODEL: model_dir, _GALLERY: gallery, _GRAPHS: graphs}
    files = {
        f"{name}/{path.relative_to(folder).as_posix()}": path
        for name, folder in folders.items()
        if folder is not None
        for path in _files(folder)
    }
    if pickles := [str(path) for path in files.values() if path.suffix in _PICKLES]:
        raise ServerError(
            f"archives carry no pickles, which run code when loaded: {', '.join(pickles)}; use safetensors"
        )
    return files


def _files(folder: Path) -> Iterator[Path]:
    """Without what Python caches, which differs from run to run, and hidden files and folders."""
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ServerError(f"no folder {folder}, or nothing in it; nothing to put into the archive")
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and path.suffix != ".pyc" and not hidden:
            yield path


def _add(archive: zipfile.ZipFile, name: str, content: Path | str) -> None:
    """A file, read chunk by chunk, or a text."""
    entry = zipfile.ZipInfo(name, date_time=_DATE)
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    source: BinaryIO = io.BytesIO(content.encode()) if isinstance(content, str) else content.open("rb")
    with source:
        entry.file_size = source.seek(0, io.SEEK_END)  # tells zipfile early whether this one needs 64-bit sizes
        source.seek(0)
        with archive.open(entry, "w") as target:
            shutil.copyfileobj(source, target, _CHUNK)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
