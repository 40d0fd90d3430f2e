"""What flows into or out of chosen layers, caught in the same forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from convlens.errors import RequestError
from convlens.instrument.modules import layer_of, private_tree


class Tap:
    """``module`` is to be called instead of the tapped model; then ``inputs`` and ``outputs`` hold tensors by layer."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}


@contextmanager
def tapped(module: nn.Module, *, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> Iterator[Tap]:
    """Catch the first input or the output of the named layers; a layer that runs twice keeps its last call.

    What is caught is a clone: an in-place ReLU after the layer would otherwise overwrite it. RequestError for an
    unknown layer, with near matches, and on leaving for one that never ran.
    """
    tap = Tap(private_tree(module))
    for name in inputs:
        tappable(tap.module, name).register_forward_pre_hook(_catch_input(tap.inputs, name))
    for name in outputs:
        tappable(tap.module, name).register_forward_hook(_catch_output(tap.outputs, name))
    yield tap
    for name, caught in [*((n, tap.inputs) for n in inputs), *((n, tap.outputs) for n in outputs)]:
        if name not in caught:
            raise RequestError(
                f"layer {name!r} exists but did not run in this forward pass; choose another", field="layer"
            )


def tappable(module: nn.Module, name: str) -> nn.Module:
    """The layer of that name; RequestError for an unknown one, with near matches, and for one that takes no hooks."""
    layer = layer_of(module, name)
    if isinstance(layer, torch.jit.ScriptModule):
        raise RequestError(f"layer {name!r} is scripted, and what flows through it cannot be caught", field="layer")
    return layer


# The hooks know the dict and not the tap: tap -> module -> hook -> tap would be a cycle, and what was caught, with the
# whole recorded graph behind it, would stay until the collector comes by.
def _catch_input(caught: dict[str, Tensor], name: str) -> Any:
    def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        caught[name] = given[0].clone()

    return hook


def _catch_output(caught: dict[str, Tensor], name: str) -> Any:
    def hook(_: nn.Module, __: Any, out: Any) -> None:
        if not isinstance(out, Tensor):
            raise RequestError(
                f"layer {name!r} gives a {type(out).__name__} and no tensor; choose another", field="layer"
            )
        caught[name] = out.clone()

    return hook
