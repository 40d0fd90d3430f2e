"""What an archive says of itself, read without unpacking it.

Which files go into an archive, and under which names.

Building the archive (.mar) that TorchServe serves.

The model entries that a server makes of one archive.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from convlens.errors import ServerError
from convlens.torchserve.archive_config import ArchiveOptions, model_config, require_name
from convlens.torchserve.server_config import handlers_folder, package_folder

MANIFEST = "MAR-INF/MANIFEST.json"


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
            model = json.loads(opened.read(MANIFEST))["model"]
            config = yaml.safe_load(opened.read(model["configFile"])) if "configFile" in model else {}
            return Manifest(model["modelName"], model.get("modelVersion", ""), config or {})
    except FileNotFoundError as error:
        raise ServerError(f"no archive {archive}; build one with `convlens archive`") from error
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, yaml.YAMLError) as error:
        raise ServerError(f"{archive} is no TorchServe archive ({error}); build it anew") from error


MODEL, GALLERY, GRAPHS = "model", "gallery", "graphs"
_PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".joblib"}


def contents(*, model_dir: Path | None, gallery: Path | None, graphs: Path | None = None) -> dict[str, Path]:
    """Name inside the archive -> file, sorted: the package's source, the packed model, the gallery and the graphs.

    The package travels along so that a stock TorchServe can serve the archive, and always by the code it was built
    with. Raises ServerError for a missing or empty folder, and for pickles, which can run code when loaded.
    """
    folders = {"convlens": package_folder(), MODEL: model_dir, GALLERY: gallery, GRAPHS: graphs}
    found = {
        f"{name}/{path.relative_to(folder).as_posix()}": path
        for name, folder in folders.items()
        if folder is not None
        for path in _files(folder)
    }
    _refuse_pickles(found)
    return dict(sorted(found.items()))


def _files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ServerError(f"no folder {folder}, or nothing in it; nothing to put into the archive")
    return (path for path in folder.rglob("*") if path.is_file() and _wanted(path.relative_to(folder)))


def _wanted(path: Path) -> bool:
    """Neither what Python caches, which differs from run to run, nor hidden files and folders."""
    return path.suffix != ".pyc" and not any(part.startswith(".") for part in path.parts)


def _refuse_pickles(found: Mapping[str, Path]) -> None:
    pickles = [str(path) for path in found.values() if path.suffix in _PICKLES]
    if pickles:
        raise ServerError(
            f"archives carry no pickles, which run code when loaded: {', '.join(pickles)}; use safetensors"
        )


CONFIG = "model-config.yaml"
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
    with tempfile.TemporaryDirectory(prefix="convlens-archive-") as temp:
        unpacked = _archiver(recipe, Path(temp))
        _zip(unpacked, path, comment=mark)
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
class _Recipe:
    name: str
    version: str
    handler: Path
    config: str
    files: Mapping[str, Path]

    def fingerprint(self) -> str:
        said = [self.name, self.version, self.handler.name, _sha256(self.handler), self.config, _archiver_version()]
        files = {name: _sha256(path) for name, path in self.files.items()}
        return hashlib.sha256(json.dumps([said, files], sort_keys=True).encode()).hexdigest()


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
    config = model_config(options, gallery=GALLERY if gallery else None, graphs=GRAPHS if graphs else None)
    files = contents(model_dir=model_dir, gallery=gallery, graphs=graphs)
    return _Recipe(require_name(name), version, handler, config, files)


def _archiver(recipe: _Recipe, temp: Path) -> Path:
    """Run torch-model-archiver on the staged files; returns the folder that it made instead of an archive.

    It runs in a temporary folder of its own, because it deletes ``$TMPDIR/<model name>`` first.
    """
    _stage(recipe, temp)
    given = {
        "model-name": recipe.name,
        "version": recipe.version,
        "handler": str(recipe.handler.resolve()),
        "extra-files": f"{temp / 'extra'}{os.sep}",
        "config-file": str(temp / CONFIG),
        "export-path": str(temp / "out"),
        "archive-format": "no-archive",
    }
    arguments = [part for key, value in given.items() for part in (f"--{key}", value)]
    command = [sys.executable, "-m", "model_archiver.model_packaging", *arguments]
    environment = {**os.environ, "TMPDIR": str(temp / "tmp")}
    done = subprocess.run(command, cwd=temp, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerError(f"torch-model-archiver failed: {(done.stderr or done.stdout).strip()[-1000:]}")
    return temp / "out" / recipe.name


def _stage(recipe: _Recipe, temp: Path) -> None:
    for folder in ("extra", "out", "tmp"):
        (temp / folder).mkdir()
    (temp / CONFIG).write_text(recipe.config, encoding="utf-8")
    for name, path in recipe.files.items():
        place = temp / "extra" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _zip(folder: Path, path: Path, *, comment: str) -> None:
    """Sorted, undated and uncompressed: weights hardly shrink, and zlib's versions differ in their bytes."""
    _undate(folder / MANIFEST)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(part, "w") as archive:
            archive.comment = comment.encode("ascii")
            for file in sorted(file for file in folder.rglob("*") if file.is_file()):
                _add(archive, file, file.relative_to(folder).as_posix())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _undate(manifest: Path) -> None:
    said = json.loads(manifest.read_text(encoding="utf-8")) | {"createdOn": "01/01/1980 00:00:00"}
    manifest.write_text(json.dumps(said, indent=2, sort_keys=True), encoding="utf-8")


def _add(archive: zipfile.ZipFile, file: Path, name: str) -> None:
    entry = zipfile.ZipInfo(name, date_time=_DATE)
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    entry.file_size = file.stat().st_size  # tells zipfile early whether this one needs 64-bit sizes
    with file.open("rb") as source, archive.open(entry, "w") as target:
        shutil.copyfileobj(source, target, _CHUNK)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _archiver_version() -> str:
    try:
        return version("torch-model-archiver")
    except PackageNotFoundError as error:
        raise ServerError("torch-model-archiver is not installed; run `pip install 'convlens[serve]'`") from error


SUFFIX = "_sweep"


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
