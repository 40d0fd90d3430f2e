"""The rule by which gradients pass a ReLU, at every ReLU call that a network makes.

``RuledRelus`` knows the rules; the second half of the file knows which torch calls are ReLUs: every spelling that clips
its input at zero from below.
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

from convlens.errors import RequestError, unknown_name

ReluRule = Literal["plain", "deconvnet", "guided"]
RULES: tuple[ReluRule, ...] = get_args(ReluRule)


# ---- the rules


class RuledRelus(TorchFunctionMode):
    """Inside this ``with``, every ReLU of the calling thread passes its gradient by ``rule``.

    With g the gradient from above and x the ReLU's input (Springenberg et al. 2014, arXiv:1412.6806, figure 1):

        plain      g · [x > 0]                 the true gradient
        deconvnet  max(g, 0)                   Zeiler & Fergus 2014, arXiv:1311.2901
        guided     max(g, 0) · [x > 0]

    ReLU6 and hardtanh(0, b) count as ReLUs with the condition 0 < x < b. ``rule`` is read when the backward pass
    runs, so one forward pass serves several backward passes: set it, differentiate, set it again. ``calls`` counts the
    ReLU calls of the forward pass.
    """

    # A function mode and not hooks on nn.ReLU. Hooks miss F.relu, torch.relu, the method, ReLU6 and clamps: by captum's
    # hooks, guided backprop of MobileNetV2, GoogLeNet, Inception and EfficientNet-Lite silently is the plain gradient.
    # And every thread that uses the module meets them: 60 of 60 saliency maps were wrong while a guided call ran in
    # another thread. Modes see every spelling, and are local to their thread.

    keeps_input = False
    """Whether ``passed`` needs the ReLU's input, where the output would otherwise do."""

    def __init__(self) -> None:
        super().__init__()
        # In this object, which the graph's nodes hold, and not in a context variable: on CUDA the backward pass runs
        # in another thread.
        self.rule: ReluRule = "plain"
        self.calls = 0

    def set(self, rule: str) -> None:
        """Choose the rule of the next backward pass; RequestError for an unknown name."""
        if rule not in RULES:
            raise RequestError(unknown_name("ReLU rule", rule, RULES))
        self.rule = rule

    def passed(self, grad: Tensor, kept: Tensor, upper: float | None) -> Tensor:
        """The part of ``grad`` that passes a ReLU; ``kept`` is the input or the output of its call."""
        if self.rule != "plain":
            grad = grad.clamp_min(0.0)
        return grad if self.rule == "deconvnet" else _masked(grad, kept, upper)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call = _as_relu(func, args, kwargs)
        if call is None:
            return func(*args, **kwargs)
        self.calls += 1
        return _apply(replace(call, output_stays=False) if self.keeps_input else call, self)


class RedirectedRelus(RuledRelus):
    """Inside this ``with``, a ReLU that would pass no gradient at all for a row passes a redirected one instead.

    Redirected: everywhere but where a unit that is off would be pushed further off, or a ReLU6 unit that is at its
    upper end further up. For maximising, in the first steps: a unit that nothing excites would otherwise never get a
    gradient (Olah et al. 2017; Lucid's ``redirected_relu_grad``, whose signs are those of minimising).
    """

    def passed(self, grad: Tensor, kept: Tensor, upper: float | None) -> Tensor:
        plain = _masked(grad, kept, upper)
        useless = (kept <= 0) & (grad < 0)
        if upper is not None:
            useless |= (kept >= upper) & (grad > 0)
        nothing_N = (plain.flatten(1) == 0).all(1).view(-1, *[1] * (grad.ndim - 1))
        return torch.where(nothing_N, grad.masked_fill(useless, 0.0), plain)


def _masked(grad: Tensor, kept: Tensor, upper: float | None) -> Tensor:
    """The true gradient: ``grad`` where the ReLU is neither off nor at its upper end."""
    # The kernels that torch's own backward pass of relu and hardtanh calls.
    if upper is None:
        return cast(Tensor, torch.ops.aten.threshold_backward(grad, kept, 0.0))
    return cast(Tensor, torch.ops.aten.hardtanh_backward(grad, kept, 0.0, upper))


class _RuledRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, upper: float | None, in_place: bool, output_stays: bool, rules: RuledRelus
    ) -> Tensor:
        ctx.upper, ctx.rules = upper, rules
        out = x.clamp_(0.0, upper) if in_place else x.clamp(0.0, upper)
        if in_place:
            ctx.mark_dirty(x)
        # 0 < out < upper exactly where 0 < x < upper, so either will do. The output where it stays: the next layer
        # keeps it anyway, and the input can be freed.
        ctx.save_for_backward(out if output_stays else x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (kept,) = ctx.saved_tensors
        return ctx.rules.passed(grad, kept, ctx.upper), None, None, None, None


def _apply(call: _ReluCall, rules: RuledRelus) -> Tensor:
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


def _ruled(x: Tensor, call: _ReluCall, rules: RuledRelus) -> Tensor:
    return cast(Tensor, _RuledRelu.apply(x, call.upper, call.in_place, call.output_stays, rules))


# ---- which calls are ReLUs


@dataclass(frozen=True)
class _ReluCall:
    """``upper`` is where the unit saturates: 6 for ReLU6, None for none.

    ``output_stays`` where torch itself keeps the output for the backward pass, so that no network may overwrite it;
    after the other spellings a network may, and the input must be kept instead.
    """

    input: Tensor
    upper: float | None
    in_place: bool
    output_stays: bool


def _as_relu(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _ReluCall | None:
    """What this call of a torch function clips, if it is a ReLU; None for any other call."""
    spelling = _SPELLINGS.get(func)
    if spelling is None:
        return None
    arguments = dict(zip(spelling.arguments, args, strict=False)) | dict(kwargs)
    x = arguments.pop("self", arguments.get("input"))
    low, high = spelling.bounds(arguments)
    # Tensors as bounds may differ from unit to unit; relu_guard refuses clamps at zero that are not recognised here.
    if isinstance(low, Tensor) or isinstance(high, Tensor) or low is None or low != 0:
        return None
    if arguments.get("out") is not None:
        return None
    in_place = spelling.in_place or bool(arguments.get("inplace"))
    return _ReluCall(x, None if high is None else float(high), in_place, in_place in spelling.output_stays)


_Bounds = Callable[[Mapping[str, Any]], tuple[Any, Any]]


@dataclass(frozen=True)
class _Spelling:
    arguments: tuple[str, ...]
    bounds: _Bounds
    in_place: bool
    output_stays: tuple[bool, ...]  # for which values of in_place


def _threshold(arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    is_relu = arguments.get("threshold") == 0 and arguments.get("value") == 0
    return (0 if is_relu else None), None


def _between(low: str, high: str, *defaults: float | None) -> _Bounds:
    return lambda arguments: (arguments.get(low, defaults[0]), arguments.get(high, defaults[1]))


# Argument names in positional order, the bounds they set, where torch keeps the output (torch's derivatives.yaml:
# "result"), and the name under which torch offers the call.
_ALWAYS, _IN_PLACE, _NEVER = (False, True), (True,), ()
_TABLE: tuple[tuple[str, _Bounds, tuple[bool, ...], str], ...] = (
    ("input inplace", lambda _: (0, None), _ALWAYS, "relu"),
    ("input inplace", lambda _: (0, 6), _IN_PLACE, "relu6"),
    ("input min_val max_val inplace", _between("min_val", "max_val", -1, 1), _IN_PLACE, "hardtanh"),
    ("input min max", _between("min", "max", None, None), _NEVER, "clamp"),
    ("input min max", _between("min", "max", None, None), _NEVER, "clip"),
    ("input min", _between("min", "max", None, None), _NEVER, "clamp_min"),
    ("input threshold value inplace", _threshold, _IN_PLACE, "threshold"),
)


def _spellings() -> Iterator[tuple[Callable[..., Any], _Spelling]]:
    """Each call as function of ``torch`` and of ``torch.nn.functional`` and as method, in place and not."""
    for arguments, bounds, output_stays, name in _TABLE:
        for home in (functional, torch, Tensor):
            for spelled in (name, f"{name}_"):
                if hasattr(home, spelled):
                    in_place = spelled.endswith("_")
                    yield getattr(home, spelled), _Spelling(tuple(arguments.split()), bounds, in_place, output_stays)


_SPELLINGS: dict[Callable[..., Any], _Spelling] = dict(_spellings())
