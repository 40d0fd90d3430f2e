"""One call of an ATen operation, some of whose tensors are bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from convlens.inside.bounds import nothing_like

_MARK = "_convlens_bounds"


def marked(tensor: Tensor) -> Tensor:
    """The same tensor, from now on known to hold bounds; every other tensor is a constant."""
    setattr(tensor, _MARK, True)
    return tensor


def is_marked(value: object) -> bool:
    return isinstance(value, Tensor) and hasattr(value, _MARK)


@dataclass(frozen=True)
class Call:
    """``function`` was called with these arguments; ``given`` has them by their names in ATen's schema."""

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """``relu_`` of ``aten::relu_.default``."""
        return str(self.function._schema.name).partition("::")[2]

    @property
    def in_place(self) -> bool:
        return self.name.endswith("_") and not self.name.endswith("__")

    @cached_property
    def given(self) -> dict[str, Any]:
        arguments = self.function._schema.arguments
        defaults = {each.name: each.default_value for each in arguments if each.has_default_value()}
        positional = {each.name: value for each, value in zip(arguments, self.args, strict=False)}
        return defaults | positional | dict(self.kwargs)

    @cached_property
    def bounds(self) -> list[Tensor]:
        """The arguments that are bounds, in order."""
        return [leaf for leaf in pytree.tree_leaves((self.args, dict(self.kwargs))) if is_marked(leaf)]

    def shape(self) -> tuple[int, ...]:
        """Of the (first) result, asked of torch itself: no rule about ceil_mode or broadcasting is written twice."""
        result = self._with(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))
        return tuple(result.shape if isinstance(result, Tensor) else result[0].shape)

    def verbatim(self) -> Any:
        """The call itself made on bounds, constants among its tensors having nothing behind them."""
        return self._with(lambda tensor: tensor if is_marked(tensor) else nothing_like(tensor))

    def _with(self, swap: Callable[[Tensor], Tensor]) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, swap, (self.args, dict(self.kwargs)))
        return self.function(*args, **kwargs)


def each(value: int | Sequence[int], axes: int) -> Iterator[int]:
    """One number an axis, from one for all or one each."""
    values = [value] if isinstance(value, int) else list(value)
    return iter(values * axes if len(values) == 1 else values)
