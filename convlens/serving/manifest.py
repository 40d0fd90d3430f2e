"""What an archive says of itself, read without unpacking it."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from convlens.errors import ServerError

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
