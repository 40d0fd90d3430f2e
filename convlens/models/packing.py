"""A classifier as a folder, and back: for archives that must load where there is no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convlens.errors import ModelError
from convlens.models.classifier import Classifier, choose_device
from convlens.models.digest import weights_sha256
from convlens.models.loading import settled
from convlens.models.names import parse
from convlens.models.sources import find_source
from convlens.models.weights import apply_state_dict, read_state_dict
from convlens.types import ModelSpec

MANIFEST = "model.json"
WEIGHTS = "weights.safetensors"
FORMAT = 1


def pack(classifier: Classifier, folder: Path) -> None:
    """Writes ``weights.safetensors``, for a ``file:`` model its ``architecture.py``, and last ``model.json``.

    The folder is made where it is missing. Without ``model.json`` it is not a packed model, so a failure half-way
    leaves none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    name = parse(classifier.source)
    portable = find_source(name.source).portable(name, folder)
    save_file(_separate(classifier.module), folder / WEIGHTS)
    manifest = {"format": FORMAT, "source": portable, "spec": asdict(classifier.spec)}
    beside = folder / f"{MANIFEST}.part"
    beside.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    beside.replace(folder / MANIFEST)


def unpack(folder: Path, *, device: str | torch.device = "auto") -> Classifier:
    """Rebuilds a packed classifier without any download: the architecture from its source, the weights from the folder.

    Raises ModelError for a damaged folder, and for weights whose sha256 is not the manifest's. The architecture file of
    a ``file:`` model is code and runs.
    """
    placed = choose_device(device)
    portable, spec = _manifest(folder / MANIFEST)
    name = parse(portable)
    source = find_source(name.source)
    located = source.located(name, folder)
    module = settled(source.skeleton(parse(located), spec.classes))
    apply_state_dict(module, read_state_dict(folder / WEIGHTS), origin=str(folder / WEIGHTS))
    _verify(module, spec, folder)
    return Classifier(module.to(placed), spec, placed, located)


def _separate(module: nn.Module) -> dict[str, Tensor]:
    """The state dict as tensors of their own: safetensors refuses strided ones, and ones that share memory (tied
    weights).
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    seen: set[int] = set()
    for name, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen:
            state[name] = tensor.clone()
        seen.add(storage)
    return state


def _manifest(path: Path) -> tuple[str, ModelSpec]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} is not a packed model: there is no {MANIFEST} in it") from None
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


def _verify(module: nn.Module, spec: ModelSpec, folder: Path) -> None:
    found = weights_sha256(module)
    if found != spec.weights_sha256:
        raise ModelError(
            f"the weights in {folder} have sha256 {found}, but {MANIFEST} says {spec.weights_sha256}; pack the model "
            "again"
        )
