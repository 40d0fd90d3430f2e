"""Is a ReLU rule defined for this network? The autograd graph that the backward pass will walk is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from convlens.errors import UnsupportedModelError

# Activations for which guided backprop and deconvnet have no definition, by the name of their autograd node.
_OTHER_ACTIVATIONS = {
    "SiluBackward": "SiLU",
    "GeluBackward": "GELU",
    "HardswishBackward": "Hardswish",
    "LeakyReluBackward": "LeakyReLU",
    "EluBackward": "ELU",
    "CeluBackward": "CELU",
    "MishBackward": "Mish",
    "SoftplusBackward": "Softplus",
    "PreluKernelBackward": "PReLU",
    "RreluWithNoiseBackward": "RReLU",
    "LogSigmoidBackward": "LogSigmoid",
    "GluBackward": "GLU",
    "HardshrinkBackward": "Hardshrink",
    "SoftshrinkBackward": "Softshrink",
    "HardtanhBackward": "Hardtanh",
}
# Element-wise steps of an activation written out by hand: x·sigmoid(x) and its kin.
_GATES = ("Sigmoid", "Hardsigmoid", "Tanh", "Erf", "Softplus", "Clamp", "_RuledRelu", "Relu", "Hardtanh")
_ELEMENTWISE = (*_GATES, "Add", "Sub", "Mul", "Div", "Neg", "Clone", "Exp", "Reciprocal")
_RULED = "_RuledReluBackward"


def refuse_unruled(output: Tensor, *, method: str) -> None:
    """Raise UnsupportedModelError unless every non-linearity behind ``output`` obeys the ReLU rule.

    ``output`` was computed inside RuledRelus. Looking at the graph rather than at the modules also finds activations
    hidden in functions, in scripted modules and in custom autograd functions.
    """
    ruled = 0
    for node in _nodes(output):
        ruled += node.name() == _RULED
        reason = _objection(node)
        if reason:
            raise UnsupportedModelError(
                f"{method} is defined for ReLU networks only, and this one {reason}; "
                "saliency, integrated_gradients, smoothgrad, grad_cam and occlusion work on any network"
            )
    if ruled == 0:
        raise UnsupportedModelError(f"{method} changes how gradients pass a ReLU, and this network calls none; use saliency")


def _nodes(output: Tensor) -> Iterator[Any]:
    seen: set[Any] = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(following for following, _ in node.next_functions)


def _objection(node: Any) -> str | None:
    name = node.name()
    activation = _OTHER_ACTIVATIONS.get(name.rstrip("0123456789"))
    if activation:
        return f"uses {activation}"
    if _is_hidden_relu(node, name):
        return f"calls a ReLU where no rule can reach it ({name}, in a scripted or compiled part)"
    if name.startswith("MulBackward") and _gates_itself(node):
        return "uses an activation that gates its input with itself, such as SiLU, GELU or Hardswish written out"
    # Nodes of torch itself are compiled; one with a Python class is a custom autograd function, whatever it computes.
    if name != _RULED and hasattr(node, "_forward_cls"):
        return f"runs a custom autograd function ({name}), inside which no rule applies"
    return None


def _is_hidden_relu(node: Any, name: str) -> bool:
    if name.startswith(("ReluBackward", "ThresholdBackward")):
        return True
    if name.startswith("Clamp"):
        return getattr(node, "_saved_min", None) == 0
    if name.startswith("MaximumBackward"):
        return any(following is None for following, _ in node.next_functions)
    return False


def _gates_itself(node: Any) -> bool:
    factors = [following for following, _ in node.next_functions if following is not None]
    if len(factors) != 2 or factors[0] is factors[1]:
        return False
    left, right = (list(_elementwise_chain(factor)) for factor in factors)
    shared = set(left) & set(right)
    if not shared:
        return False
    passed = [step.name() for step in (*left, *right) if step not in shared]
    return any(name.startswith(_GATES) for name in passed)


def _elementwise_chain(node: Any) -> Iterator[Any]:
    """The node and those below it for as long as each is an element-wise function of one tensor."""
    while node is not None:
        yield node
        inputs = [following for following, _ in node.next_functions if following is not None]
        if len(inputs) != 1 or not node.name().startswith(_ELEMENTWISE):
            return
        node = inputs[0]
