"""A classifier as a folder, and back: for archives that must load where nothing can be downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convlens.errors import ModelError
from convlens.instrument import find_memory_format, require_precision
from convlens.models.classifier import Classifier, choose_device
from convlens.models.head import adapted
from convlens.models.manifest import GRAPHS, MANIFEST, read_manifest, write_manifest
from convlens.models.model_id import MEMORY, parse_model_id
from convlens.models.network import for_inference
from convlens.models.sources import find_source
from convlens.models.weights import apply_state_dict, read_state_dict, weights_sha256
from convlens.types import ArithmeticPrecision, ModelSpec

_WEIGHTS = "weights.safetensors"


def pack(classifier: Classifier, folder: Path) -> None:
    """Write ``weights.safetensors``, for a ``file:`` model its ``architecture.py``, and last ``model.json``.

    The folder is made where it is missing. Without ``model.json`` it is not a packed model, so a failure half-way
    leaves none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    model_id = parse_model_id(classifier.source)
    if model_id.source == MEMORY:
        raise ModelError(
            f"{classifier.source} was wrapped in memory, and its code cannot be packed; write a function that makes it "
            "into a file and load file:PATH.py:FUNCTION?weights=FILE, or pack its graphs: export.bundle(classifier, "
            "FOLDER)"
        )
    recorded = find_source(model_id.source).pack_architecture(model_id, folder)
    save_file(_separate(classifier.module), folder / _WEIGHTS)
    write_manifest(folder, source=recorded, spec=classifier.spec)


def unpack(
    folder: Path, *, device: str | torch.device = "auto", precision: ArithmeticPrecision | None = None
) -> Classifier:
    """The packed classifier, without any download: the architecture from its source, the weights from the folder.

    ``precision`` is as for ``load``. Raises ModelError for a damaged folder, and for weights whose sha256 is not the
    manifest's. The architecture file of a ``file:`` model is code and runs.
    """
    require_precision(precision)
    chosen = choose_device(device)
    recorded, spec = read_manifest(folder)
    if recorded == GRAPHS:
        raise ModelError(f"{folder} holds exported graphs and no network; serve it with --runtime onnx")
    model_id = parse_model_id(recorded)
    source = find_source(model_id.source)
    located = source.locate_architecture(model_id, folder)
    module = for_inference(source.architecture(parse_model_id(located), spec.classes))
    apply_state_dict(module, read_state_dict(folder / _WEIGHTS), origin=str(folder / _WEIGHTS))
    module = adapted(module, spec.head)
    _verify(module, spec, folder)
    find_memory_format(module, torch.zeros(1, spec.channels, *spec.input_size))
    return Classifier(module.to(chosen), spec, chosen, located, precision=precision)


def _separate(module: nn.Module) -> dict[str, Tensor]:
    """The state dict, each tensor contiguous and in memory of its own."""
    # safetensors refuses strided tensors (channels last) and those that share memory (tied weights).
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    seen: set[int] = set()
    for name, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen:
            state[name] = tensor.clone()
        seen.add(storage)
    return state


def _verify(module: nn.Module, spec: ModelSpec, folder: Path) -> None:
    actual = weights_sha256(module)
    if actual != spec.weights_sha256:
        raise ModelError(
            f"the weights in {folder} have sha256 {actual}, but {MANIFEST} says {spec.weights_sha256}; pack the model "
            "again"
        )
