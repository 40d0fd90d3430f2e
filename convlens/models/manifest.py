"""``model.json``: what a folder with a packed model says of itself. Read without torch, timm or torchvision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from convlens.errors import ModelError
from convlens.types import ModelSpec

MANIFEST = "model.json"
FORMAT = 1
# In the place of a source, in a folder that holds exported graphs and no network.
GRAPHS = "graphs"


def write_manifest(folder: Path, *, source: str, spec: ModelSpec) -> None:
    """Beside first and then renamed: without ``model.json`` a folder is no packed model."""
    manifest = {"format": FORMAT, "source": source, "spec": asdict(spec)}
    beside = folder / f"{MANIFEST}.part"
    beside.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    beside.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> tuple[str, ModelSpec]:
    """The source (or GRAPHS) and the spec. ModelError for a folder that is none or damaged."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a packed model: there is no {MANIFEST} in it") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ModelError(f"{path} is not of format {FORMAT}; pack the model again with this version")
    if not isinstance(found.get("source"), str) or not isinstance(found.get("spec"), dict):
        raise ModelError(f"{path} lacks 'source' or 'spec'; pack the model again")
    return found["source"], _spec(path, found["spec"])


def _spec(path: Path, found: Mapping[str, Any]) -> ModelSpec:
    known = {field.name for field in fields(ModelSpec)}
    if found.keys() != known:
        raise ModelError(
            f"{path}: 'spec' should have the keys {', '.join(sorted(known))}; it has {', '.join(sorted(found))}"
        )
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    return ModelSpec(**values)
