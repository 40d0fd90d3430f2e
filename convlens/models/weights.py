"""Weights: a state dict into a network that it must fit, their fingerprint, and the same untrained ones every time."""

from __future__ import annotations

import difflib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from convlens.errors import ModelError
from convlens.models.weight_files import read_weights_file

_MOST_NAMED = 4
_MOST_COMPARED = 2000  # names; the nearest one is searched among so many
COUNTER = "num_batches_tracked"  # batch norm's


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that holds nothing else, such as ``.safetensors``; ``load_weights`` reads all others.

    Raises ModelError as ``read_weights_file`` does, and for a file that holds more or none.
    """
    content = read_weights_file(path)
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(each, Tensor) for each in content.values())
    ):
        raise ModelError(f"weights file {path} should hold a state dict (name -> tensor) and nothing else")
    return dict(content)


def apply_state_dict(module: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy a state dict into a network whose names and shapes it must match one for one.

    Only batch norm's step counters may be missing: old checkpoints have none, and eval mode does not read them.
    ``origin`` names the weights in errors. Raises ModelError with the counts, the first few names and the remedy
    for what does not fit.
    """
    own = module.state_dict()
    faults = check_fit(own, state)
    if faults:
        raise ModelError(f"the weights of {origin} do not fit the network: {faults}")
    counters = {name: tensor for name, tensor in own.items() if name.endswith(COUNTER)}
    complete: OrderedDict[str, Tensor] = OrderedDict({**counters, **state})
    # Layers that convert old versions look at the version (torchvision's MNASNet refuses to load without one);
    # safetensors keeps none.
    complete._metadata = own._metadata  # type: ignore[attr-defined]
    try:
        module.load_state_dict(complete)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the weights of {origin} do not load: {error}") from error


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What keeps these weights from a network's state dict, and what to do; empty where they fit."""
    missing = [name for name in own if name not in state and not name.endswith(COUNTER)]
    unexpected = [name for name in state if name not in own]
    common = [name for name in own if name in state and isinstance(own[name], Tensor)]
    misshaped = [name for name in common if state[name].shape != own[name].shape]
    untyped = [name for name in common if not _is_convertible(state[name], own[name])]
    faults = [
        _few("missing", missing, lambda name: _nearest(name, unexpected)),
        _few("unexpected", unexpected, lambda name: _nearest(name, missing)),
        _few("of another shape", misshaped, lambda name: f" {_shape(state[name])} instead of {_shape(own[name])}"),
        _few("of a type that is no real number", untyped, lambda name: f" {state[name].dtype}"),
    ]
    return "; ".join(filter(None, [*faults, _remedy(own, state, missing, unexpected, misshaped)]))


def _is_convertible(tensor: Tensor, own: Tensor) -> bool:
    """Whether copying keeps what the numbers mean: quantised and complex weights are no plain floats."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return tensor.is_floating_point() or not own.is_floating_point()


def _few(what: str, names: Sequence[str], detail: Callable[[str], str]) -> str:
    more = ", …" if len(names) > _MOST_NAMED else ""
    named = ", ".join(f"{name}{detail(name)}" for name in names[:_MOST_NAMED])
    return f"{len(names)} {what} ({named}{more})" if names else ""


def _nearest(name: str, others: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, others[:_MOST_COMPARED], n=1, cutoff=0.5)
    return f" [nearest: {close[0]}]" if close else ""


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _remedy(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
    misshaped: Sequence[str],
) -> str:
    if not (missing or unexpected or misshaped):
        return ""
    needed = [name for name in own if not name.endswith(COUNTER)]
    last = needed[-1].rpartition(".")[0] if needed else ""
    only_last = all(name.rpartition(".")[0] == last for name in (*missing, *misshaped)) and not unexpected
    if only_last and misshaped and not missing:
        classes = len(state[misshaped[0]]) if state[misshaped[0]].ndim else 0
        return (
            f"the file's last layer has {classes} outputs: labels=FILE sets how many classes there are (one label a "
            "line), and for a file: model its function does"
        )
    if only_last and len(missing) == sum(name.rpartition(".")[0] == last for name in needed):
        return "the file has no last layer, only the features below it; give weights that were trained with classes"
    fitting = len(needed) - len(missing) - len(misshaped)
    if misshaped or fitting < len(needed) / 2:
        return (
            f"only {fitting} of the network's {len(needed)} entries are in the file, so it is of another architecture "
            "or has its names from another library; name the network that these weights were trained in"
        )
    return "name the network that these weights were trained in, or rename the entries in the file"


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
