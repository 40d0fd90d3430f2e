"""Files that ConvLens 0.1.0 wrote, and what it read back from them."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from convlens.models import Classifier, load

DATA = Path(__file__).parents[1] / "data" / "written_by_0.1"
MODEL = "file:network.py:network?size=16&resize=16&mean=.5&std=.25"


def copied(folder: Path) -> Path:
    """All of them in a folder that may be written to; descriptions of jobs name their files relative to it."""
    return Path(shutil.copytree(DATA, folder / "written", dirs_exist_ok=True))


def expected(name: str) -> dict[str, Any]:
    """What version 0.1.0 read and answered, by the name of the folder."""
    values: dict[str, Any] = json.loads((DATA / "expected.json").read_text())[name]
    return values


def network(folder: Path) -> Classifier:
    """The model that made them; ``folder`` is the copy."""
    return load(MODEL.replace("network.py", str(folder / "network.py")), device="cpu")


def as_if_with_these_libraries(settings: Path) -> None:
    """An extraction goes on only with the libraries that began it, which on another machine are others."""
    values = json.loads(settings.read_text())
    for package in values["versions"]:
        try:
            values["versions"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            values["versions"][package] = "unknown"
    settings.write_text(json.dumps(values))
