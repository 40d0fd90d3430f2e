"""From what a network returns to logits (N, K): which steps that takes, and the network with them applied.

The steps are words, so that a packed model's manifest can hold them:

    own-input      the network gets a copy of its images, which it overwrites
    own-output     what the network returns lies in memory that it keeps, and is copied
    item:KEY       one entry of a mapping, field of an object, or place in a tuple
    before:LAYER   that layer, a softmax or sigmoid at the end, is left out
    before-call:N  the same for the N-th call of such a function, counted from 1
    flatten        (N, K, 1, 1) or (N,) to two axes
    float32        logits of another width
    both-signs     one logit z, of class 1 against class 0, to the two logits -z and z
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from convlens.errors import ModelError, near_matches
from convlens.instrument import private_tree
from convlens.types import Activation

BOTH_SIGNS, OWN_INPUT, OWN_OUTPUT = "both-signs", "own-input", "own-output"
_ITEM, _BEFORE, _BEFORE_CALL, _FLATTEN, _FLOAT32 = "item:", "before:", "before-call:", "flatten", "float32"
_BY_HAND = "_convlens_forward"  # an attribute
_LOGITS = ("logits", "out", "output", "outputs", "scores", "pred", "prediction")  # fields, the likeliest first

ACTIVATIONS: Mapping[Callable[..., Any], Activation] = {
    **dict.fromkeys((torch.softmax, Tensor.softmax, functional.softmax), "softmax"),
    **dict.fromkeys((torch.log_softmax, Tensor.log_softmax, functional.log_softmax), "softmax"),
    **dict.fromkeys(
        (torch.sigmoid, Tensor.sigmoid, functional.sigmoid, torch.special.expit, Tensor.sigmoid_), "sigmoid"
    ),
}
"""Functions that turn logits into probabilities, and the activation that they are."""


def adapted(module: nn.Module, steps: Sequence[str]) -> nn.Module:
    """The network with these steps behind it; layers keep their names, and ``module`` stays as it is.

    Without steps it is ``module`` itself. ModelError for a layer that is not there.
    """
    if not steps:
        return module
    tree = private_tree(module)
    for step in steps:
        if step.startswith(_BEFORE):
            _leave_out(tree, step.removeprefix(_BEFORE))
    calls = [int(step.removeprefix(_BEFORE_CALL)) for step in steps if step.startswith(_BEFORE_CALL)]
    if "forward" in vars(tree):
        vars(tree)[_BY_HAND] = vars(tree).pop("forward")
    tree.__class__ = _with_steps(type(tree), [step for step in steps if not step.startswith("before")], calls)
    return tree


def _leave_out(tree: nn.Module, layer: str) -> None:
    parent, _, name = layer.rpartition(".")
    try:
        tree.get_submodule(layer)
    except AttributeError:
        raise ModelError(f"the network has no layer {layer!r}, which its head was to leave out") from None
    tree.get_submodule(parent)._modules[name] = nn.Identity().eval()


def _with_steps(network: type[nn.Module], steps: Sequence[str], calls: Sequence[int]) -> type[nn.Module]:
    """A subclass whose forward pass takes the steps. A module around it would change every layer's name."""
    behind = [step for step in steps if step != OWN_INPUT]

    def inner(module: nn.Module) -> Callable[..., Any]:
        # A forward that was put on the module by hand, which ``adapted`` has moved aside.
        return vars(module).get(_BY_HAND) or partial(network.forward, module)

    class WithHead(network):  # type: ignore[misc, valid-type]  # a class made at run time
        def forward(self, x_NCHW: Tensor) -> Any:
            if OWN_INPUT in steps:
                x_NCHW = x_NCHW.clone()
            own_buffers = _buffers_without_gradients(self) if OWN_OUTPUT in steps else nullcontext()
            with own_buffers, _LeftOut(calls[0]) if calls else nullcontext():
                return reduce(_take, behind, inner(self)(x_NCHW))

    WithHead.__name__ = WithHead.__qualname__ = network.__name__
    return WithHead


@contextmanager
def _buffers_without_gradients(network: nn.Module) -> Iterator[None]:
    """Inside, what the pass writes into buffers is written there, and the graph that it records is not kept by them."""
    own = [part for part in network.modules() if not isinstance(part, torch.jit.ScriptModule)]
    before = [dict(part._buffers) for part in own]
    for part in own:
        part._buffers.update({name: None if each is None else each.detach() for name, each in part._buffers.items()})
    try:
        yield
    finally:
        for part, buffers in zip(own, before, strict=True):
            part._buffers.update(buffers)


class _LeftOut(TorchFunctionMode):
    """Inside, the N-th call of a function in ``ACTIVATIONS`` returns what it was given."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self._remaining = call

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in ACTIVATIONS:
            self._remaining -= 1
            if self._remaining == 0:
                return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


def _take(output: Any, step: str) -> Any:
    if step.startswith(_ITEM):
        return _item(output, step.removeprefix(_ITEM))
    if step == OWN_OUTPUT:
        return output.clone()
    if step == _FLATTEN:
        return output.reshape(len(output), -1)
    if step == _FLOAT32:
        return output.float()
    if step == BOTH_SIGNS:
        return torch.cat([-output, output], dim=1)
    raise ModelError(f"the model's head has the step {step!r}, which this version does not know; pack the model again")


def _item(output: Any, key: str) -> Any:
    if isinstance(output, Mapping):
        return output[next(own for own in output if str(own) == key)]
    return output[int(key)] if isinstance(output, Sequence) and key.isdigit() else getattr(output, key)


def steps_to_tensor(output: Any, wanted: str | int | None, *, rows: int) -> tuple[tuple[str, ...], Tensor]:
    """The steps from what a network returned for so many images to one tensor (rows, D), and that tensor.

    ``wanted`` names the entry of an output that has several. ModelError where there is none, or which is meant is
    not clear.
    """
    steps: list[str] = []
    if not isinstance(output, Tensor):
        steps.append(f"{_ITEM}{_entry(output, wanted, rows)}")
        output = _take(output, steps[-1])
    elif wanted is not None:
        raise ModelError(f"output={wanted!r} was given, but the network returns one tensor {tuple(output.shape)}")
    if output.shape == (rows,) or (output.ndim == 4 and output.shape[2:] == (1, 1)):
        steps.append(_FLATTEN)
        output = _take(output, _FLATTEN)
    if output.ndim != 2 or len(output) != rows:
        raise ModelError(
            f"two images gave a tensor {tuple(output.shape)}; a classifier gives logits, one row an image: (2, K)"
        )
    if output.dtype != torch.float32 and output.is_floating_point():
        steps.append(_FLOAT32)
        output = output.float()
    return tuple(steps), output


def _entry(output: Any, wanted: str | int | None, rows: int) -> str:
    """The key of the entry that holds the logits."""
    entries = _entries(output)
    if wanted is not None:
        if str(wanted) not in entries:
            known = ", ".join(entries) or "none"
            raise ModelError(
                f"the network returns no {wanted!r}{near_matches(str(wanted), entries)}; there are: {known}"
            )
        return str(wanted)
    fitting = [key for key, value in entries.items() if _is_row_each(value, rows)]
    named = [key for key in _LOGITS if key in fitting]
    if named or len(fitting) == 1:
        return (named or fitting)[0]
    shapes = ", ".join(
        f"{key}: {tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__}" for key, v in entries.items()
    )
    raise ModelError(
        f"the network returns a {type(output).__name__} ({shapes}), and which of it are the logits is not clear; say "
        "so by convlens.wrap(..., output=KEY), or output=KEY behind the ? of the name"
    )


def _entries(output: Any) -> dict[str, Any]:
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if isinstance(output, Sequence) and not isinstance(output, str):
        return {str(index): value for index, value in enumerate(output)}
    return dict(vars(output)) if hasattr(output, "__dict__") else {}


def _is_row_each(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and (
        value.shape == (rows,)
        or (value.ndim == 2 and len(value) == rows)
        or (value.ndim == 4 and len(value) == rows and value.shape[2:] == (1, 1))
    )


def step_before(layer: str) -> str:
    """The step that leaves this layer out."""
    return f"{_BEFORE}{layer}"


def step_before_call(call: int) -> str:
    """The step that leaves the N-th call of an activation out, counted from 1."""
    return f"{_BEFORE_CALL}{call}"
