"""Which files go into an archive, and under which names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from convlens.errors import ServerError
from convlens.serving.places import package_folder

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
