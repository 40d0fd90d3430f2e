"""Which torch calls are ReLUs: every spelling that clips its input at zero from below.

The rule by which gradients pass a ReLU, at every ReLU call a network makes.

Gradients for ascent that pass dead ReLUs, so that a unit that nothing excites can be reached at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from convlens.errors import RequestError


@dataclass(frozen=True)
class ReluCall:
    """``upper`` is where the unit saturates: 6 for ReLU6, None for none.

    ``output_stays`` where torch itself keeps the output for the backward pass, so that no network may overwrite it;
    after the other spellings a network may, and the input must be kept instead.
    """

    input: Tensor
    upper: float | None
    in_place: bool
    output_stays: bool


def as_relu(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ReluCall | None:
    """What this call of a torch function clips, if it is a ReLU; None for any other call."""
    spelling = _SPELLINGS.get(func)
    if spelling is None:
        return None
    given = dict(zip(spelling.arguments, args, strict=False)) | dict(kwargs)
    given["input"] = given.pop("self", given.get("input"))
    low, high = spelling.bounds(given)
    if isinstance(low, Tensor) or isinstance(high, Tensor) or low is None or low != 0 or given.get("out") is not None:
        return None
    in_place = spelling.in_place or bool(given.get("inplace"))
    return ReluCall(given["input"], None if high is None else float(high), in_place, in_place in spelling.output_stays)


Bounds = Callable[[Mapping[str, Any]], tuple[Any, Any]]


@dataclass(frozen=True)
class _Spelling:
    arguments: tuple[str, ...]
    bounds: Bounds
    in_place: bool
    output_stays: tuple[bool, ...]  # for which values of in_place


def _threshold(given: Mapping[str, Any]) -> tuple[Any, Any]:
    is_relu = given.get("threshold") == 0 and given.get("value") == 0
    return (0 if is_relu else None), None


def _between(low: str, high: str, *defaults: float | None) -> Bounds:
    return lambda given: (given.get(low, defaults[0]), given.get(high, defaults[1]))


# Argument names in positional order, the bounds they set, where torch keeps the output (torch's derivatives.yaml:
# "result"), and the names under which torch offers the call.
_ALWAYS, _IN_PLACE, _NEVER = (False, True), (True,), ()
_TABLE: tuple[tuple[str, Bounds, tuple[bool, ...], str], ...] = (
    ("input inplace", lambda _: (0, None), _ALWAYS, "relu"),
    ("input inplace", lambda _: (0, 6), _IN_PLACE, "relu6"),
    ("input min_val max_val inplace", _between("min_val", "max_val", -1, 1), _IN_PLACE, "hardtanh"),
    ("input min max", _between("min", "max", None, None), _NEVER, "clamp"),
    ("input min max", _between("min", "max", None, None), _NEVER, "clip"),
    ("input min", _between("min", "max", None, None), _NEVER, "clamp_min"),
    ("input threshold value inplace", _threshold, _IN_PLACE, "threshold"),
)


def _entries() -> Iterator[tuple[Callable[..., Any], _Spelling]]:
    for arguments, bounds, output_stays, name in _TABLE:
        for home in (functional, torch, Tensor):
            for spelled in (name, f"{name}_"):
                if hasattr(home, spelled):
                    in_place = spelled.endswith("_")
                    yield getattr(home, spelled), _Spelling(tuple(arguments.split()), bounds, in_place, output_stays)


_SPELLINGS: dict[Callable[..., Any], _Spelling] = dict(_entries())
ReluRule = Literal["plain", "deconvnet", "guided"]
RULES: tuple[ReluRule, ...] = get_args(ReluRule)


class RuledRelus(TorchFunctionMode):
    """Inside this ``with``, every ReLU of the calling thread asks ``rule`` how its gradient passes.

    With g the gradient from above and x the ReLU's input (Springenberg et al. 2014, arXiv:1412.6806, figure 1):

        plain      g · [x > 0]                 the true gradient
        deconvnet  max(g, 0)                   Zeiler & Fergus 2014, arXiv:1311.2901
        guided     max(g, 0) · [x > 0]

    ReLU6 and hardtanh(0, b) count as ReLUs with the condition 0 < x < b. ``rule`` is read when the backward pass
    runs, so one forward serves several backwards: set it, differentiate, set it again. ``calls`` counts the ReLU
    calls met.

    Function modes of torch are thread-local, which a patch or a hook is not, and they see every spelling: module,
    reused module, in place, functional, method. The rule sits in this object and not in a context variable because
    on CUDA the backward pass runs in another thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rule: ReluRule = "plain"
        self.calls = 0

    def set(self, rule: str) -> None:
        """Choose the rule of the next backward pass; RequestError for a name that is none."""
        if rule not in RULES:
            raise RequestError(f"no ReLU rule {rule!r}; there are: {', '.join(RULES)}")
        self.rule = rule

    def passed(self, grad: Tensor, kept: Tensor, upper: float | None) -> Tensor:
        """What of ``grad`` passes a ReLU of which ``kept``, its input or its output, was kept."""
        if self.rule != "plain":
            grad = grad.clamp_min(0.0)
        return grad if self.rule == "deconvnet" else masked(grad, kept, upper)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call = as_relu(func, args, kwargs)
        if call is None:
            return func(*args, **kwargs)
        self.calls += 1
        return _apply(call, self)


def _apply(call: ReluCall, rules: RuledRelus) -> Tensor:
    x = call.input
    if not call.in_place:
        return _ruled(x, call, rules)
    if not torch.is_grad_enabled():
        return x.clamp_(0.0, call.upper)
    if x._is_view() or x.is_leaf or not call.output_stays:
        # A custom in-place function may not write through a view; copy_ may, and carries the gradient along.
        # On a leaf that wants a gradient copy_ raises what torch raises there for any in-place call.
        return x.copy_(_ruled(x.clone(), replace(call, in_place=False), rules))
    return _ruled(x, call, rules)


def _ruled(x: Tensor, call: ReluCall, rules: RuledRelus) -> Tensor:
    return cast(Tensor, _RuledRelu.apply(x, call.upper, call.in_place, call.output_stays, rules))


class _RuledRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, upper: float | None, in_place: bool, output_stays: bool, rules: RuledRelus
    ) -> Tensor:
        ctx.upper, ctx.rules = upper, rules
        out = x.clamp_(0.0, upper) if in_place else x.clamp(0.0, upper)
        if in_place:
            ctx.mark_dirty(x)
        # 0 < out < upper exactly where 0 < x < upper: either will do, and the next layer keeps the output anyway.
        ctx.save_for_backward(out if output_stays else x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (kept,) = ctx.saved_tensors
        return ctx.rules.passed(grad, kept, ctx.upper), None, None, None, None


def masked(grad: Tensor, kept: Tensor, upper: float | None) -> Tensor:
    """The true gradient: ``grad`` where the ReLU is neither off nor at its upper end."""
    if upper is None:
        return cast(Tensor, torch.ops.aten.threshold_backward(grad, kept, 0.0))
    return cast(Tensor, torch.ops.aten.hardtanh_backward(grad, kept, 0.0, upper))


class RedirectedRelus(RuledRelus):
    """Inside this ``with``, where no gradient at all would pass a ReLU for a row, it passes redirected.

    Redirected: everywhere but where a unit that is off would be pushed further off, or one of a ReLU6 that is at its
    upper end further up. Meant for maximising, for the first steps (Olah et al. 2017; Lucid's
    ``redirected_relu_grad``, whose signs are those of minimising).
    """

    def passed(self, grad: Tensor, kept: Tensor, upper: float | None) -> Tensor:
        plain = masked(grad, kept, upper)
        useless = (kept <= 0) & (grad < 0)
        if upper is not None:
            useless |= (kept >= upper) & (grad > 0)
        nothing_N = (plain.flatten(1) == 0).all(1).view(-1, *[1] * (grad.ndim - 1))
        return torch.where(nothing_N, grad.masked_fill(useless, 0.0), plain)
