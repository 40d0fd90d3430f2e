"""State dicts: from a file, without running what a pickle may carry, and into a network, entry by entry.

A fingerprint of a network's weights.

The same untrained weights every time.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from convlens.errors import ModelError

PICKLED = (".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *PICKLED)
WRAPPERS = ("state_dict", "model")

# What torch's careful unpickler stumbles over in a file that is cut short or no checkpoint at all.
DAMAGED = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError)
COUNTER = "num_batches_tracked"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a ``.pt``, ``.pth`` or ``.bin`` one (read with
    ``weights_only=True``).

    ``{"state_dict": …}`` and ``{"model": …}`` are unwrapped, and a ``module.`` before every name (DataParallel) is
    dropped. Raises ModelError for a file that is missing, damaged, of another kind, or a pickle that holds more than
    tensors.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(f"weights file {path} should end in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}")
    found = _pickled(path) if path.suffix.lower() in PICKLED else _safetensors(path)
    return _without_prefix(_tensors(path, _unwrapped(found)))


def apply_state_dict(module: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Copies a state dict into a network whose names and shapes it must match one for one.

    Only batch norm's step counters may be missing: old checkpoints have none, and eval mode does not read them.
    ``origin`` says in the error where the weights came from. Raises ModelError with the counts and the first few names
    of what does not fit.
    """
    own = module.state_dict()
    counters = {name: tensor for name, tensor in own.items() if name.endswith(COUNTER)}
    complete: OrderedDict[str, Tensor] = OrderedDict({**counters, **state})
    _compare(own, complete, origin)
    # Layers that convert old versions ask for the version (torchvision's MNASNet refuses to load without one);
    # safetensors keeps none.
    complete._metadata = own._metadata  # type: ignore[attr-defined]
    try:
        module.load_state_dict(complete)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the weights of {origin} do not load: {error}") from error


def _safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights file {path} is not a whole safetensors file: {error}") from error


def _pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"weights file {path} is a pickle that holds more than tensors; reading it could run any code in it, so "
            "it was refused. "
            "Where you trust it, convert it once: safetensors.torch.save_file(model.state_dict(), "
            "'weights.safetensors')"
        ) from error
    except DAMAGED as error:
        raise ModelError(f"weights file {path} cannot be read as a state dict: {error}") from error


def _unwrapped(found: Any) -> Any:
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            return found[key]
    return found


def _tensors(path: Path, found: Any) -> dict[str, Tensor]:
    if not isinstance(found, Mapping) or not found:
        raise ModelError(
            f"weights file {path} holds a {type(found).__name__}; it should hold a state dict (name -> tensor)"
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            wrappers = ", ".join(WRAPPERS)
            raise ModelError(
                f"weights file {path}: entry {name!r} is a {type(value).__name__}; a state dict holds tensors only, "
                f"and may lie under one of: {wrappers}"
            )
    return dict(found)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _compare(own: Mapping[str, Tensor], given: Mapping[str, Tensor], origin: str) -> None:
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    misshaped = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    faults = [_few("missing", missing), _few("unexpected", unexpected), _few("of another shape", misshaped)]
    if any(faults):
        hint = (
            ""
            if missing or unexpected
            else "; where that is the last layer, labels=FILE sets how many classes there are"
        )
        raise ModelError(f"the weights of {origin} do not fit the network: {'; '.join(filter(None, faults))}{hint}")


def _few(what: str, names: Iterable[str], most: int = 4) -> str:
    listed = list(names)
    more = ", …" if len(listed) > most else ""
    return f"{len(listed)} {what} ({', '.join(listed[:most])}{more})" if listed else ""


def weights_sha256(module: nn.Module) -> str:
    """The sha256 over the state dict: for each entry, sorted by name, its name, type, shape and raw bytes.

    It does not depend on the device, on memory layout, or on the order of registration. Tensors are fed one by one, so
    no second copy of the weights is made on the CPU.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            raise ModelError(
                f"the state dict's entry {name!r} is a {type(tensor).__name__}; only tensors can be hashed and packed"
            )
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(_raw(tensor))
    return digest.hexdigest()


def _raw(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes in row-major order, whatever its type (numpy has no bfloat16, so they are viewed as bytes
    first).
    """
    flat = tensor.detach().cpu().reshape(-1)
    return flat.view(torch.uint8).numpy().data


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Inside, torch's CPU generator starts from ``seed``; afterwards it stands where it stood before.

    Only the CPU's: ``torch.manual_seed`` would reseed every GPU as well. Networks are built on the CPU.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
