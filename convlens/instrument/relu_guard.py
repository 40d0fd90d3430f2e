"""Refuses networks for which a ReLU rule is not defined, by the autograd graph that the backward pass will walk.

The graph and not the modules: it also shows activations inside functions, scripted modules and custom autograd
functions, which would pass the plain gradient unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from convlens.errors import UnsupportedModelError

# Activations for which guided backprop and deconvnet have no definition, by the name of their autograd node without
# its number.
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
# Steps that can be the gate of an activation written out by hand, as the sigmoid in x·sigmoid(x) (SiLU). Bounded
# clamps and ReLUs among them: Hardswish is x·relu6(x + 3)/6.
_GATES = {
    "Sigmoid",
    "Hardsigmoid",
    "Tanh",
    "Erf",
    "Exp",
    "Softplus",
    "Clamp",
    "ClampMin",
    "_RuledRelu",
    "Relu",
    "Hardtanh",
}
# Steps between the gate and the input that it shares with the other factor.
_ELEMENTWISE = _GATES | {"Add", "Sub", "Rsub", "Mul", "Div", "Neg", "Pow", "Clone", "Reciprocal", "CopySlices"}
# Steps that choose between values, as a ReLU or LeakyReLU written out by hand does.
_CHOICES = {
    "Where": "torch.where",
    "MaskedFill": "masked_fill",
    "Abs": "abs",
    "Maximum": "torch.maximum",
    "Minimum": "torch.minimum",
}
# How names of autograd nodes begin: pooling over windows of one to three dimensions, adaptive ones, or a whole side.
_MAXIMA = ("MaxPool", "AdaptiveMaxPool", "FractionalMaxPool", "MaxBackward", "AmaxBackward")
_RULED = "_RuledReluBackward"
_OURS = (_RULED, "_DepthwiseBackward")  # a depthwise convolution is linear


def require_relu_network(output: Tensor, *, method: str, even_none: bool = False) -> None:
    """Raise UnsupportedModelError unless every non-linearity behind ``output`` obeys the ReLU rule.

    ``output`` was computed inside RuledRelus; ``method`` names the method in the error. With ``even_none`` a network
    without any non-linearity passes too, as there is none before a first convolution.
    """
    ruled = 0
    for node in graph_nodes(output):
        ruled += node.name() == _RULED
        reason = _objection(node)
        if reason:
            raise UnsupportedModelError(
                f"{method} is defined for ReLU networks only, and this one {reason}; "
                "saliency, integrated_gradients, smoothgrad, grad_cam and occlusion work on any network"
            )
    if ruled == 0 and not even_none:
        raise UnsupportedModelError(
            f"{method} changes how gradients pass a ReLU, and this network calls none; use saliency"
        )


def remembers_places(output: Tensor) -> bool:
    """Whether a maximum lies behind ``output``, whose gradient goes to the place where the input was largest.

    Without one, deconvnet's rule sees nothing of the image: it ignores which ReLUs were on.
    """
    return any(node.name().startswith(_MAXIMA) for node in graph_nodes(output))


def graph_nodes(output: Tensor) -> Iterator[Any]:
    """Every node of the recorded graph, once."""
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
    """Why this node makes a ReLU rule undefined, as the end of a sentence about the network; None where it does not."""
    name = node.name()
    activation = _OTHER_ACTIVATIONS.get(name.rstrip("0123456789"))
    if activation:
        return f"uses {activation}"
    if _is_hidden_relu(node, name) or "DifferentiableGraph" in name:
        return f"calls a ReLU where no rule can reach it ({name}, in a scripted or compiled part)"
    if _step(node) in ("Mul", "Div") and _gates_itself(node):
        return "uses an activation that gates its input with itself, such as SiLU, GELU or Hardswish written out"
    chooses = _CHOICES.get(_step(node)) or ("a product with a mask" if _multiplies_by_a_mask(node) else None)
    if chooses:
        return f"calls {chooses}, which may be a ReLU written out where no rule can reach it"
    # Nodes of torch itself are compiled. One with a Python class is a custom autograd function: its backward pass may
    # compute anything, and calls inside it never reach the function mode.
    if name not in _OURS and hasattr(node, "_forward_cls"):
        return f"runs a custom autograd function ({name}), inside which no rule applies"
    return None


def _step(node: Any) -> str:
    """MulBackward0 -> Mul"""
    return str(node.name()).partition("Backward")[0]


def _is_hidden_relu(node: Any, name: str) -> bool:
    """A ReLU that the function mode did not see, or else it would be a node of ours."""
    if name.startswith(("ReluBackward", "ThresholdBackward")):
        return True
    if name.startswith("Clamp"):
        low = getattr(node, "_saved_min", None)
        return low is not None and bool(torch.any(torch.as_tensor(low) == 0))
    return False


def _multiplies_by_a_mask(node: Any) -> bool:
    """x * (x > 0), say: one factor in the graph, the other a constant of booleans."""
    if _step(node) != "Mul" or len(_inputs(node)) != 1:
        return False
    other = node._saved_other if node.next_functions[0][0] is not None else node._saved_self
    return other is not None and other.dtype == torch.bool


def _inputs(node: Any) -> list[Any]:
    return [following for following, _ in node.next_functions if following is not None]


def _gates_itself(node: Any) -> bool:
    """Whether a product's one factor is a function of the other, as in x·sigmoid(x), and not of another branch.

    Squeeze-and-excitation gates too, but pools in between, which is not element-wise; so it is not refused.
    """
    factors = _inputs(node)
    if len(factors) != 2:
        return False
    (left, left_roots), (right, right_roots) = (_elementwise_region(factor) for factor in factors)
    # One factor is an element-wise function of what the other is made of, and a gate stands between them.
    related = left_roots <= right or right_roots <= left
    return related and any(_step(node) in _GATES for node in left ^ right)


def _elementwise_region(node: Any) -> tuple[set[Any], set[Any]]:
    """The nodes from this one down to the first of each path that is not element-wise, and these first ones alone."""
    region: set[Any] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node not in region:
            region.add(node)
            waiting.extend(_inputs(node) if _step(node) in _ELEMENTWISE else ())
    return region, {node for node in region if _step(node) not in _ELEMENTWISE}
