"""Slow plain definitions to hold the fast code against; nothing here uses convlens, hooks or function modes.

A ReferenceNetwork is the network as a list of single ATen steps, none of which writes into its input. It runs them one
by one, keeps every value, and walks back one step at a time: each step's vector-Jacobian product by autograd on that
step alone, each ReLU by its rule written out.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def relu_bounds(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[float, float | None] | None:
    """(0, upper) where this ATen step clips at zero from below, None for any other step."""
    packet = getattr(func, "overloadpacket", None)
    if packet in (aten.relu, aten.relu_):
        return 0.0, None
    if packet in (aten.hardtanh, aten.hardtanh_):
        low, high = (*args[1:], *(-1.0, 1.0)[len(args) - 1 :])
    elif packet in (aten.clamp, aten.clamp_):
        low, high = (*args[1:], kwargs.get("min"), kwargs.get("max"))[:2] if len(args) < 3 else args[1:3]
    elif packet in (aten.clamp_min, aten.clamp_min_):
        low, high = args[1], None
    elif packet in (aten.threshold, aten.threshold_):
        low, high = (0.0, None) if args[1] == 0 and args[2] == 0 else (None, None)
    else:
        return None
    return (0.0, high) if low == 0 else None


def apply_relu_rule(rule: str, g: Tensor, x: Tensor, upper: float | None) -> Tensor:
    """Springenberg et al. 2014, figure 1, as written there."""
    switched_on = (x > 0) if upper is None else (x > 0) & (x < upper)
    if rule == "plain":
        return torch.where(switched_on, g, 0.0)
    if rule == "deconvnet":
        return torch.where(g > 0, g, 0.0)
    if rule == "guided":
        return torch.where(switched_on & (g > 0), g, 0.0)
    raise ValueError(rule)


class ReferenceNetwork:
    """``module`` on the pictures ``x_NCHW``, whose shape is fixed thereby."""

    def __init__(self, module: nn.Module, x_NCHW: Tensor) -> None:
        with torch.no_grad():
            # Functionalised: an in-place step becomes one with a result of its own, so that every value survives.
            self._steps = make_fx(functionalize(module))(x_NCHW)
            assert not any(_writes(node.target) for node in self._steps.graph.nodes)
            self._values = self._run(x_NCHW)
        self._last = next(node for node in self._steps.graph.nodes if node.op == "output").args[0]
        self.logits_NK: Tensor = self._values[self._last]
        self.relu_calls = sum(self._bounds(node) is not None for node in self._steps.graph.nodes)

    def gradient(self, rule: str, target_N: list[int]) -> Tensor:
        """d logit(target) / d x (N, C, H, W) under the rule."""
        one_hot_NK = torch.nn.functional.one_hot(torch.tensor(target_N), self.logits_NK.shape[1]).to(self.logits_NK)
        pending: dict[fx.Node, Any] = {self._last: one_hot_NK}
        for node in reversed(self._steps.graph.nodes):
            if node not in pending:
                continue
            if node.op == "placeholder":
                return pending[node]
            for source, g in self._pulled_back(node, pending.pop(node), rule):
                _add(pending, source, g)
        raise AssertionError("the logits do not depend on the picture")

    def _run(self, x_NCHW: Tensor) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = {}
        self._moving: set[fx.Node] = set()  # nodes that depend on the picture
        for node in self._steps.graph.nodes:
            if node.op == "placeholder":
                values[node] = x_NCHW
                self._moving.add(node)
            elif node.op == "get_attr":
                values[node] = getattr(self._steps, node.target)
            elif node.op == "call_function":
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
                if self._moving & set(node.all_input_nodes):
                    self._moving.add(node)
        return values

    def _bounds(self, node: fx.Node) -> tuple[float, float | None] | None:
        return relu_bounds(node.target, node.args, node.kwargs) if node.op == "call_function" else None

    def _pulled_back(self, node: fx.Node, g: Any, rule: str) -> list[tuple[fx.Node, Any]]:
        if node.op != "call_function" or node not in self._moving:
            return []
        if node.target is operator.getitem:
            return [(node.args[0], {node.args[1]: g})]
        bounds = self._bounds(node)
        if bounds is not None:
            source = node.args[0]
            return [(source, apply_relu_rule(rule, g, self._values[source], bounds[1]))]
        return self._differentiated(node, g)

    def _differentiated(self, node: fx.Node, g: Any) -> list[tuple[fx.Node, Tensor]]:
        leaves: dict[fx.Node, Tensor] = {}

        def leaf(source: fx.Node) -> Any:
            value = self._values[source]
            if source not in self._moving or not isinstance(value, Tensor):
                return value
            return leaves.setdefault(source, value.detach().requires_grad_())

        with torch.enable_grad():
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), leaf)
            out = node.target(*args, **kwargs)
        outs, gs = ([out], [g]) if isinstance(out, Tensor) else ([out[i] for i in g], list(g.values()))
        found = torch.autograd.grad(outs, list(leaves.values()), gs, allow_unused=True)
        return [(source, part) for source, part in zip(leaves, found, strict=True) if part is not None]


def _writes(step: Any) -> bool:
    return isinstance(step, torch._ops.OpOverload) and step._schema.is_mutable


def _add(pending: dict[fx.Node, Any], node: fx.Node, g: Any) -> None:
    if isinstance(g, dict):  # of a step with several results, by number
        slots = pending.setdefault(node, {})
        for i, part in g.items():
            slots[i] = slots[i] + part if i in slots else part
    else:
        pending[node] = pending[node] + g if node in pending else g


class _ReluCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.calls += relu_bounds(func, args, kwargs or {}) is not None
        return func(*args, **(kwargs or {}))


def relu_calls(module: nn.Module, x_NCHW: Tensor) -> int:
    """How many ReLUs really run in a plain forward, counted below every Python spelling."""
    with torch.no_grad(), _ReluCounter() as counter:
        module(x_NCHW)
    return counter.calls


def plain_gradient(module: nn.Module, x_NCHW: Tensor, target_N: list[int]) -> Tensor:
    """The textbook gradient of each row's own logit, row by row."""
    rows = []
    for x_CHW, target in zip(x_NCHW, target_N, strict=True):
        x = x_CHW[None].clone().requires_grad_()
        rows.append(torch.autograd.grad(module(x)[0, target], x)[0])
    return torch.cat(rows)


def finite_differences(module: nn.Module, x_NCHW: Tensor, target: int, *, step: float = 1e-6) -> Tensor:
    """Central differences of one picture's logit, pixel by pixel."""
    grad = torch.zeros_like(x_NCHW)
    with torch.no_grad():
        for i in range(x_NCHW.numel()):
            moved = [x_NCHW.clone(), x_NCHW.clone()]
            moved[0].view(-1)[i] += step
            moved[1].view(-1)[i] -= step
            up, down = (module(x)[0, target] for x in moved)
            grad.view(-1)[i] = (up - down) / (2 * step)
    return grad


def smoothgrad(module: nn.Module, x_1CHW: Tensor, target: int, *, samples: int, noise: float, seed: int) -> Tensor:
    """One gradient a noisy copy, averaged; the noise drawn as captum draws it: 16 copies at a time, in float32."""
    generator = torch.Generator().manual_seed(seed)
    deviation = noise * float(x_1CHW.max() - x_1CHW.min())
    total = torch.zeros_like(x_1CHW)
    for first in range(0, samples, 16):
        copies = x_1CHW.repeat_interleave(min(16, samples - first), dim=0)
        noise = torch.normal(0.0, torch.full(copies.shape, deviation), generator=generator)
        for noisy in copies + noise:
            total += plain_gradient(module, noisy[None], [target])
    return total / samples


def grad_cam(module: nn.Module, layer: nn.Module, x_1CHW: Tensor, target: int) -> Tensor:
    """Selvaraju et al. 2017, equations 1 and 2 without the ReLU: (1, 1, h, w). ``module`` is hooked: give a copy."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        seen.append(out)
        return out.clone()  # an in-place step that follows may not overwrite what is kept

    handle = layer.register_forward_hook(keep)
    with torch.enable_grad():
        score = module(x_1CHW.clone().requires_grad_())[0, target]
        (grad,) = torch.autograd.grad(score, seen[0])
    handle.remove()
    weight_1C11 = grad.mean(dim=(2, 3), keepdim=True)
    return (weight_1C11 * seen[0].detach()).sum(dim=1, keepdim=True)


def function_modes() -> list[TorchFunctionMode]:
    """The calling thread's stack of torch function modes."""
    return list(torch.overrides._get_current_function_mode_stack())
