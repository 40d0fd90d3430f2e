"""Hooks on layers, always on a private tree of modules over shared weights and never on the user's model.

``tapped`` catches what flows into or out of layers in a forward pass, ``PartialForward`` runs no further than the
layers it returns.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from convlens.errors import ModelError, RequestError, UnsupportedModelError, near_matches

OUTPUT = ":output"
"""Behind the name of a layer whose output is meant where names otherwise mean inputs."""


def private_tree(module: nn.Module) -> nn.Module:
    """A copy of the tree of modules that shares every parameter and buffer; a few milliseconds, no weights copied.

    Hooks on the copy fire for nobody else: threads that use ``module`` itself never see them. Functions among the
    attributes, such as a ``forward`` that was put there by hand, run the copies. Modules kept in plain attributes,
    outside ``named_children``, stay those of the original, and so do scripted ones, which call no hooks.
    """
    copies: dict[int, nn.Module] = {}
    tree = _copied(module, copies)
    rebind_functions(tree, copies)
    return tree


def rebind_functions(tree: nn.Module, copies: Mapping[int, nn.Module]) -> None:
    """Let the functions among the attributes of ``tree`` run the copies of modules, which are given by the id of each
    original.
    """
    for part in tree.modules():
        if not isinstance(part, torch.jit.ScriptModule):
            functions = {name: value for name, value in vars(part).items() if callable(value)}
            vars(part).update({name: _rebound(value, copies) for name, value in functions.items()})


def _copied(module: nn.Module, copies: dict[int, nn.Module]) -> nn.Module:
    # A module that is used at two places must stay one module.
    if id(module) in copies:
        return copies[id(module)]
    if isinstance(module, torch.jit.ScriptModule):
        return module
    # Without __init__, whose arguments nobody knows here; and by object's own, for that of a graph module makes an
    # empty class for each.
    copy = copies[id(module)] = object.__new__(type(module))
    # Tables of hooks, parameters and the like are copied, one level deep; everything else is shared.
    copy.__dict__.update({k: v.copy() if isinstance(v, dict) else v for k, v in module.__dict__.items()})
    children: dict[str, Any] = module._modules
    # Asked for None and not for truth: an empty nn.Sequential, many networks' shortcut, is false.
    copy.__dict__["_modules"] = {
        name: None if child is None else _copied(child, copies) for name, child in children.items()
    }
    return copy


def _rebound(value: Any, copies: Mapping[int, nn.Module]) -> Any:
    """A function with the copies in place of the modules that it is bound to, was given beforehand, or closes over."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, nn.Module | type):
        return value
    # What torch.compile makes of a function remembers it.
    value = getattr(value, "_torchdynamo_orig_callable", value)
    if isinstance(value, types.MethodType):
        return types.MethodType(_rebound(value.__func__, copies), _rebound(value.__self__, copies))
    if isinstance(value, functools.partial):
        given = {name: _rebound(each, copies) for name, each in value.keywords.items()}
        return functools.partial(_rebound(value.func, copies), *(_rebound(a, copies) for a in value.args), **given)
    if isinstance(value, types.FunctionType) and value.__closure__:
        cells = tuple(_rebound_cell(cell, copies) for cell in value.__closure__)
        if any(new is not old for new, old in zip(cells, value.__closure__, strict=True)):
            copy = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
            copy.__kwdefaults__ = value.__kwdefaults__
            return copy
    return value


def _rebound_cell(cell: types.CellType, copies: Mapping[int, nn.Module]) -> types.CellType:
    try:
        held = cell.cell_contents
    except ValueError:  # nothing is in it yet
        return cell
    # Not into functions of functions without end: a wrapper may close over itself.
    is_bound = id(held) in copies or isinstance(held, types.MethodType | functools.partial)
    return types.CellType(_rebound(held, copies)) if is_bound else cell


def require_eval(module: nn.Module) -> None:
    """Raise ModelError where dropout or batch statistics would make the answer depend on chance or on the batch."""
    training = [name or "the model" for name, part in module.named_modules() if part.training]
    if training:
        raise ModelError(f"{training[0]} is in training mode; call .eval() on the model first")


def find_layer(module: nn.Module, name: str) -> nn.Module:
    """The layer of that dotted name; RequestError with near matches for an unknown one.

    UnsupportedModelError for an empty name, which stands for a layer that the network does not show.
    """
    layers: dict[str, nn.Module] = dict(module.named_modules())
    if name and name in layers:
        return layers[name]
    scripted = any(isinstance(layer, torch.jit.ScriptModule) for layer in layers.values())
    hidden = "; parts of the network are scripted or traced, and the layers in them cannot be seen" if scripted else ""
    if not name:
        raise UnsupportedModelError(
            f"no layer '': the network shows none to take by default; name one{hidden}", field="layer"
        )
    raise RequestError(
        f"no layer {name!r}{near_matches(name, layers) or '; its first are ' + ', '.join(list(layers)[1:6])}{hidden}",
        field="layer",
    )


def _find_hookable(module: nn.Module, name: str) -> nn.Module:
    layer = find_layer(module, name)
    if isinstance(layer, torch.jit.ScriptModule):
        raise RequestError(f"layer {name!r} is scripted, and what flows through it cannot be caught", field="layer")
    return layer


def _as_tensor(out: Any, name: str) -> Tensor:
    if not isinstance(out, Tensor):
        raise RequestError(
            f"layer {name!r} returns a {type(out).__name__} and no tensor; choose another", field="layer"
        )
    return out


class Tap:
    """``module`` is to be called instead of the tapped model; then ``inputs`` and ``outputs`` hold tensors by layer."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}


@contextmanager
def tapped(module: nn.Module, *, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> Iterator[Tap]:
    """Catch the first input or the output of the named layers; a layer that runs twice keeps its last call.

    Among ``inputs`` a name that ends in ``OUTPUT`` means what the layer gives, ``OUTPUT`` alone what the module gives,
    and an empty one no layer.
    RequestError for an unknown layer, with near matches, and on leaving for one that never ran.
    """
    tap = Tap(private_tree(module))
    inputs = [name for name in inputs if name]
    for name in inputs:
        if name == OUTPUT:
            tap.module.register_forward_hook(_catch_output(tap.inputs, name))
        elif name.endswith(OUTPUT):
            layer = _find_hookable(tap.module, name.removesuffix(OUTPUT))
            layer.register_forward_hook(_catch_output(tap.inputs, name))
        else:
            _find_hookable(tap.module, name).register_forward_pre_hook(_catch_input(tap.inputs, name))
    for name in outputs:
        _find_hookable(tap.module, name).register_forward_hook(_catch_output(tap.outputs, name))
    yield tap
    for name, caught in [*((n, tap.inputs) for n in inputs), *((n, tap.outputs) for n in outputs)]:
        if name not in caught:
            raise RequestError(
                f"layer {name!r} exists but did not run in this forward pass; choose another", field="layer"
            )


# The hooks know the dict and not the tap: tap -> module -> hook -> tap would be a cycle, and what was caught, with the
# whole recorded graph behind it, would stay until the collector comes by. They keep clones, since an in-place ReLU
# behind the layer would overwrite what it returned (pytorch-grad-cam, which keeps the tensor, reads 0 for -3.6).
def _catch_input(caught: dict[str, Tensor], name: str) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        caught[name] = args[0].clone()

    return hook


def _catch_output(caught: dict[str, Tensor], name: str) -> Any:
    def hook(_: nn.Module, __: Any, out: Any) -> None:
        caught[name] = _as_tensor(out, name).clone()

    return hook


class PartialForward:
    """Call it with images (N, C, H, W), get the outputs of the named layers, by name; nothing behind them is run.

    A layer that runs several times (torchvision's ResNets share one ReLU within a block) counts by its last run: one
    row of ``example_NCHW`` goes through the whole network once, to see how often each layer runs. Gradients flow to
    the images as usual, also by the rules of ``RuledRelus``. Results may be kept: no in-place step of the network
    overwrites them. RequestError for an unknown layer, with near matches, for one that does not run, and for one that
    returns no tensor. Not to be called from two threads at once.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], example_NCHW: Tensor) -> None:
        self.module = self._tree = private_tree(module)
        self._layers = tuple(dict.fromkeys(layers))
        self._calls = dict.fromkeys(self._layers, 0)
        self._last_call: dict[str, int] = {}
        self._outputs: dict[str, Tensor] = {}
        for name in self._layers:
            _find_hookable(self._tree, name).register_forward_hook(self._hook(name))
        self._count_calls(example_NCHW[:1])

    def __call__(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        self._calls = dict.fromkeys(self._layers, 0)
        self._outputs = {}
        with contextlib.suppress(_CompleteError):
            self._tree(x_NCHW)
        # Not kept here: with them would stay the recorded graph.
        outputs, self._outputs = self._outputs, {}
        return outputs

    def _count_calls(self, x_NCHW: Tensor) -> None:
        try:
            with torch.no_grad():
                self._tree(x_NCHW)
        except RuntimeError:
            # A head for another size of image, say, behind the last layer asked for.
            if not all(self._calls.values()):
                raise
        for name, calls in self._calls.items():
            if calls == 0:
                raise RequestError(f"layer {name!r} exists but does not run; choose another", field="layer")
        self._last_call = self._calls

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            self._calls[name] += 1
            out = _as_tensor(out, name)
            if not self._last_call or self._calls[name] != self._last_call[name]:
                return
            complete = len(self._outputs) == len(self._layers) - 1
            # Nothing runs behind the last layer that could write into its output.
            self._outputs[name] = out if complete else out.clone()
            if complete:
                # A forward pass cannot be left but by an exception.
                raise _CompleteError

        return hook


class _CompleteError(Exception):
    """Ends a forward pass that has run all layers asked for."""
