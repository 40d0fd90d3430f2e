"""Weights: state dicts from a file and into a network, their fingerprint, and the same untrained ones every time."""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from convlens.errors import ModelError

_PICKLED = (".pt", ".pth", ".bin")
_SUFFIXES = (".safetensors", *_PICKLED)
_WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the state dict

# What torch's restricted unpickler raises for a file that is cut short or no checkpoint at all.
_DAMAGED = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError)
_COUNTER = "num_batches_tracked"  # batch norm's


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a ``.pt``, ``.pth`` or ``.bin`` one (read with
    ``weights_only=True``).

    ``{"state_dict": …}`` and ``{"model": …}`` are unwrapped, and a ``module.`` before every name (DataParallel) is
    dropped. Raises ModelError for a file that is missing, damaged, of another kind, or a pickle that holds more than
    tensors.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise ModelError(f"weights file {path} should end in one of {', '.join(_SUFFIXES)}")
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}")
    content = _load_pickled(path) if path.suffix.lower() in _PICKLED else _load_safetensors(path)
    return _without_prefix(_require_tensors(path, _unwrapped(content)))


def apply_state_dict(module: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy a state dict into a network whose names and shapes it must match one for one.

    Only batch norm's step counters may be missing: old checkpoints have none, and eval mode does not read them.
    ``origin`` names the weights in errors. Raises ModelError with the counts and the first few names
    of what does not fit.
    """
    own = module.state_dict()
    counters = {name: tensor for name, tensor in own.items() if name.endswith(_COUNTER)}
    complete: OrderedDict[str, Tensor] = OrderedDict({**counters, **state})
    _require_match(own, complete, origin)
    # Layers that convert old versions look at the version (torchvision's MNASNet refuses to load without one);
    # safetensors keeps none.
    complete._metadata = own._metadata  # type: ignore[attr-defined]
    try:
        module.load_state_dict(complete)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the weights of {origin} do not load: {error}") from error


def _load_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights file {path} is not a whole safetensors file: {error}") from error


def _load_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"weights file {path} is a pickle that holds more than tensors; reading it could run any code in it, so "
            "it was refused. "
            "Where you trust it, convert it once: safetensors.torch.save_file(model.state_dict(), "
            "'weights.safetensors')"
        ) from error
    except _DAMAGED as error:
        raise ModelError(f"weights file {path} cannot be read as a state dict: {error}") from error


def _unwrapped(content: Any) -> Any:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return content[key]
    return content


def _require_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise ModelError(
            f"weights file {path} holds a {type(content).__name__}; it should hold a state dict (name -> tensor)"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            wrappers = ", ".join(_WRAPPERS)
            raise ModelError(
                f"weights file {path}: entry {name!r} is a {type(value).__name__}; a state dict holds tensors only, "
                f"and may lie under one of: {wrappers}"
            )
    return dict(content)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _require_match(own: Mapping[str, Tensor], state: Mapping[str, Tensor], origin: str) -> None:
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    misshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = [_few("missing", missing), _few("unexpected", unexpected), _few("of another shape", misshaped)]
    if any(faults):
        hint = "; where that is the last layer, labels=FILE sets how many classes there are"
        only_shapes = not missing and not unexpected
        raise ModelError(
            f"the weights of {origin} do not fit the network: {'; '.join(filter(None, faults))}"
            f"{hint if only_shapes else ''}"
        )


def _few(what: str, names: Sequence[str]) -> str:
    more = ", …" if len(names) > 4 else ""
    return f"{len(names)} {what} ({', '.join(names[:4])}{more})" if names else ""


def weights_sha256(module: nn.Module) -> str:
    """The sha256 over the state dict: for each entry, sorted by name, its name, type, shape and raw bytes.

    It does not depend on the device, on memory layout, or on the order of registration. Raises ModelError for a state
    dict that holds more than tensors.
    """
    digest = hashlib.sha256()
    # One by one: of weights on a GPU there is never a whole second copy on the CPU.
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):
            raise ModelError(
                f"the state dict's entry {name!r} is a {type(tensor).__name__}; only tensors can be hashed and packed"
            )
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(_raw(tensor))
    return digest.hexdigest()


def _raw(tensor: Tensor) -> memoryview:
    """The tensor's bytes in row-major order."""
    # Viewed as bytes before numpy: that has no bfloat16.
    flat = tensor.detach().cpu().reshape(-1)
    return flat.view(torch.uint8).numpy().data


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Inside, torch's CPU generator starts from ``seed``; afterwards it stands where it stood before.

    For building networks, which happens on the CPU.
    """
    before = torch.get_rng_state()
    # Not torch.manual_seed, which reseeds every GPU as well.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
