"""A network run on bounds in place of pictures: every operation tells what it does to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from convlens.errors import UnsupportedModelError
from convlens.inside import moving_rules, whole_rules, window_rules
from convlens.inside.calls import Call, marked

_RULES: Mapping[str, Callable[[Call], Any]] = {**window_rules.RULES, **whole_rules.RULES}


class Bounding(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Inside this ``with``, what the calling thread computes from marked tensors are bounds.

    Below autograd, where this mode sits, a network is a few dozen operations however it was written: modules, functions
    and methods look alike there, shapes are numbers, and whatever Python decides by them is decided as in a real run.
    Tracing with torch.fx stops at such decisions (timm's "same" padding, loops over shapes). ``where`` says what is
    running, for errors. An operation without a rule is refused: UnsupportedModelError.
    """

    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor here
        self._where = where

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = Call(func, args, kwargs or {})
        if not call.bounds:
            return func(*args, **call.kwargs)
        rule = _RULES.get(call.name) or moving_rules.rule_of(call)
        if rule is None:
            raise self._refusal(call, "no rule is known for it")
        try:
            result = rule(call)
        except UnsupportedModelError as error:
            raise self._refusal(call, f"it is {error.message}") from None
        if rule is moving_rules.constant:
            return result
        return _as_returned(call, pytree.tree_map_only(Tensor, marked, result))

    def _refusal(self, call: Call, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"receptive fields cannot be followed through aten::{call.name} in {self._where()}: {reason}; they can be "
            "through convolution, pooling, padding, norms, means, fully connected layers, slices and element-wise steps"
        )


def _as_returned(call: Call, result: Any) -> Any:
    """In the form in which the operation returns it: some give indices or statistics as well, which nobody follows."""
    returns = len(call.function._schema.returns)
    return (result, *[None] * (returns - 1)) if returns > 1 and isinstance(result, Tensor) else result
