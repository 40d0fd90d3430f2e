"""An archive that is up to date: built when its inputs have changed, reused when not."""

from __future__ import annotations

import tempfile
from pathlib import Path

from convlens.cli.console import console, step
from convlens.models import Classifier, pack
from convlens.serving import archive
from convlens.serving.model_config import ArchiveOptions


def current_archive(
    classifier: Classifier,
    *,
    name: str,
    store: Path,
    gallery: Path | None,
    version: str = "1.0",
    options: ArchiveOptions,
) -> Path:
    """``store/NAME.mar`` for this model and gallery, built only where it is missing or out of date."""
    path = store / f"{name}.mar"
    with tempfile.TemporaryDirectory(prefix="convlens-pack-") as temp:
        with step("packing the model"):
            pack(classifier, Path(temp) / "model")
        said = archive.fingerprint(
            name=name, model_dir=Path(temp) / "model", gallery=gallery, version=version, options=options
        )
        if archive.is_current(path, said):
            console.print(f"{path} is up to date", markup=False, highlight=False, soft_wrap=True)
            return path
        with step(f"building {path}"):
            return archive.build(
                name=name,
                model_dir=Path(temp) / "model",
                store=store,
                gallery=gallery,
                version=version,
                options=options,
            )
