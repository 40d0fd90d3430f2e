"""A private tree of modules over shared weights, so that hooks never touch the user's model.

What flows into or out of chosen layers, caught in the same forward pass.

A network cut short: no further than the layers that are asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from convlens.errors import ModelError, RequestError, near_matches


def private_tree(module: nn.Module) -> nn.Module:
    """A copy of the tree of modules that shares every parameter and buffer; a few milliseconds, no weights copied.

    Hooks on the copy fire for nobody else: threads that use ``module`` itself never see them. Modules kept in plain
    attributes, outside ``named_children``, stay those of the original.
    """
    return _copied(module, {})


def _copied(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    # A module used at two places must stay one module; hence ``done``.
    if id(module) in done:
        return done[id(module)]
    copy = done[id(module)] = module.__new__(type(module))
    # update, not assignment: the __setattr__ of a scripted module would ask for what is not there yet.
    copy.__dict__.update({name: _own(value) for name, value in module.__dict__.items()})
    children: dict[str, Any] = module._modules
    copy.__dict__["_modules"] = {name: child and _copied(child, done) for name, child in children.items()}
    return copy


def _own(value: Any) -> Any:
    """Hook tables and the like are copied, one level deep; everything else is shared."""
    return value.copy() if isinstance(value, dict) else value


def require_eval(module: nn.Module) -> None:
    """Raise ModelError where dropout or batch statistics would make the answer depend on chance or on the batch."""
    training = [name or "the model" for name, part in module.named_modules() if part.training]
    if training:
        raise ModelError(f"{training[0]} is in training mode; call .eval() on the model first")


def find_layer(module: nn.Module, name: str) -> nn.Module:
    """The part of that dotted name, or RequestError with near matches."""
    parts: dict[str, nn.Module] = dict(module.named_modules())
    if not name or name not in parts:
        raise RequestError(
            f"no layer {name!r}{near_matches(name, parts) or '; its first are ' + ', '.join(list(parts)[1:6])}",
            field="layer",
        )
    return parts[name]


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
    layer = find_layer(module, name)
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


class PartialForward:
    """Call it with pictures (N, C, H, W), get what the named layers give, by name; what comes behind them is not run.

    A layer that runs several times (torchvision's ResNets share one ReLU within a block) counts by its last run: one
    row of ``example_NCHW`` goes through the whole network once, to see how often each layer runs. Gradients flow to
    the pictures as usual, also by the rules of ``RuledRelus``. Results may be kept: no in-place step of the network
    overwrites them. Hooks sit on a private tree that shares the weights. RequestError for an unknown layer, with near
    matches, for one that does not run, and for one that gives no tensor. Not to be called from two threads at once.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], example_NCHW: Tensor) -> None:
        self._tree = private_tree(module)
        self._layers = tuple(dict.fromkeys(layers))
        self._calls = dict.fromkeys(self._layers, 0)
        self._wanted: dict[str, int] = {}
        self._found: dict[str, Tensor] = {}
        for name in self._layers:
            tappable(self._tree, name).register_forward_hook(self._hook(name))
        self._count(example_NCHW[:1])

    def __call__(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        self._calls = dict.fromkeys(self._layers, 0)
        self._found = {}
        with contextlib.suppress(_AllThereError):
            self._tree(x_NCHW)
        found, self._found = self._found, {}
        return found

    def _count(self, x_NCHW: Tensor) -> None:
        with torch.no_grad():
            self._tree(x_NCHW)
        for name, calls in self._calls.items():
            if calls == 0:
                raise RequestError(f"layer {name!r} exists but does not run; choose another", field="layer")
        self._wanted = self._calls

    def _hook(self, name: str) -> Any:
        def caught(_: nn.Module, __: Any, out: Any) -> None:
            self._calls[name] += 1
            if not isinstance(out, Tensor):
                raise RequestError(
                    f"layer {name!r} gives a {type(out).__name__} and no tensor; choose another", field="layer"
                )
            if not self._wanted or self._calls[name] != self._wanted[name]:
                return
            last = len(self._found) == len(self._layers) - 1
            # Nothing runs behind the last one that could write into it.
            self._found[name] = out if last else out.clone()
            if last:
                raise _AllThereError

        return caught


class _AllThereError(Exception):
    """Ends a forward pass that has given what was wanted."""
