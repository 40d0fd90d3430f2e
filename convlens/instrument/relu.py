"""The rule by which gradients pass a ReLU, at every ReLU call a network makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from convlens.errors import RequestError
from convlens.instrument.relu_calls import ReluCall, as_relu

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
