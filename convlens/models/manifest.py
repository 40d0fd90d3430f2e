"""``model.json``: what a folder with a packed model says of itself. Read without torch, timm or torchvision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from convlens.errors import ModelError
from convlens.types import ModelSpec
from convlens.utils.files import atomic_write

MANIFEST = "model.json"
FORMAT = 1
GRAPHS = "graphs"
"""The ``source`` in the manifest of a folder that holds exported graphs and no network."""

# Fields of ModelSpec whose key in the file is an older name. Format 1 keeps it, since its readers of version 0.1 refuse
# any other key; the field's own name is read as well.
_KEYS = {"gradcam_layer": "attention_layer"}
_FIELDS = {key: name for name, key in _KEYS.items()}
_DEFAULTS = {field.name: field.default for field in fields(ModelSpec) if field.default is not MISSING}


def write_manifest(folder: Path, *, source: str, spec: ModelSpec) -> None:
    """Write ``model.json``, whole or not at all: a folder without it is no packed model."""
    # What is as it was in version 0.1 is left out, as that version wrote it.
    stored = {
        _KEYS.get(name, name): value for name, value in asdict(spec).items() if value != _DEFAULTS.get(name, MISSING)
    }
    manifest = {"format": FORMAT, "source": source, "spec": stored}
    with atomic_write(folder / MANIFEST) as draft:
        draft.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


def read_manifest(folder: Path) -> tuple[str, ModelSpec]:
    """The source (or GRAPHS) and the spec. Raises ModelError for a folder without a manifest or with a damaged one."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a packed model: there is no {MANIFEST} in it") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelError(f"{path} is not of format {FORMAT}; pack the model again with this version")
    if not isinstance(manifest.get("source"), str) or not isinstance(manifest.get("spec"), dict):
        raise ModelError(f"{path} lacks 'source' or 'spec'; pack the model again")
    return manifest["source"], _spec(path, manifest["spec"])


def _spec(path: Path, stored: Mapping[str, Any]) -> ModelSpec:
    values: dict[str, Any] = {
        _FIELDS.get(key, key): tuple(value) if isinstance(value, list) else value for key, value in stored.items()
    }
    names = {field.name for field in fields(ModelSpec)}
    if not names - _DEFAULTS.keys() <= values.keys() <= names or len(values) != len(stored):
        keys = sorted(_KEYS.get(name, name) for name in names - _DEFAULTS.keys())
        raise ModelError(f"{path}: 'spec' should have the keys {', '.join(keys)}; it has {', '.join(sorted(stored))}")
    return ModelSpec(**values)
