"""A private tree of modules over shared weights, so that hooks never touch the user's model."""

from __future__ import annotations

from typing import Any

from torch import nn

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


def layer_of(module: nn.Module, name: str) -> nn.Module:
    """The part of that dotted name, or RequestError with near matches."""
    parts: dict[str, nn.Module] = dict(module.named_modules())
    if not name or name not in parts:
        raise RequestError(
            f"no layer {name!r}{near_matches(name, parts) or '; its first are ' + ', '.join(list(parts)[1:6])}",
            field="layer",
        )
    return parts[name]
