"""Traces the gradient of a class's logit by the image into a forward graph, which torch's exporter can export.

torch.export does not export a backward pass. So ``make_fx`` traces it first, operator by operator, each ReLU's rule
included; operators that the exporter does not know are decomposed into ones that it does (``decompositions``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from convlens.errors import UnsupportedModelError
from convlens.explain.input_gradient import differentiating, require_reached
from convlens.instrument import ReluRule, RuledRelus, require_relu_network
from convlens.models import Classifier
from convlens.runtime.graph_contract import GradientKind
from convlens.runtime.memory import is_out_of_memory
from convlens.types import ModelSpec
from export.gradients.decompositions import DECOMPOSITIONS

RULES: dict[GradientKind, ReluRule] = {"saliency": "plain", "guided_backprop": "guided", "deconvnet": "deconvnet"}


# What torch's machinery raises for operators and values that it cannot trace.
TRACE_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)


class Gradient(nn.Module):
    """d logit / d image under the ReLU rule, and the logits, of normalised images (N, C, H, W) and a class each (N)."""

    def __init__(self, network: nn.Module, rule: ReluRule) -> None:
        super().__init__()
        self.network, self._rule = network, rule
        self._dtype = next(network.parameters()).dtype

    def forward(self, x_NCHW: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        x = x_NCHW.to(self._dtype).detach().requires_grad_()
        rules = RuledRelus()
        rules.set(self._rule)
        with torch.enable_grad(), rules, GlobalMeans():
            logits_NK: Tensor = self.network(x)
        target_NK = torch.arange(logits_NK.shape[1], device=x.device) == target_N[:, None]
        (grad_NCHW,) = torch.autograd.grad(logits_NK, x, target_NK.to(self._dtype))
        return grad_NCHW.float(), logits_NK.detach().float()


class GlobalMeans(TorchFunctionMode):
    """Inside, adaptive average pooling to one pixel is a mean.

    The same numbers; but torch's own kernel gives the result its input's strides, and the backward pass of that is no
    operator that an exporter knows.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.adaptive_avg_pool2d:
            x, size = [*args, *(kwargs or {}).values()]
            if size in (1, (1, 1), [1, 1]):
                return x.mean((-2, -1), keepdim=True)
        return func(*args, **(kwargs or {}))


def require_rule(classifier: Classifier, spec: ModelSpec, kind: GradientKind) -> None:
    """UnsupportedModelError where no gradient reaches the image, and where the network has activations that the kind's
    ReLU rule is not defined for.
    """
    dtype = next(classifier.module.parameters()).dtype
    x_NCHW = torch.zeros(1, spec.channels, *spec.input_size, device=classifier.device, dtype=dtype)
    with differentiating(kind), torch.enable_grad(), RuledRelus():
        logits_NK = classifier.module(x_NCHW.requires_grad_())
    require_reached(logits_NK, method=kind)
    if kind != "saliency":
        require_relu_network(logits_NK, method=kind)


def unroll(graph: nn.Module, inputs: Sequence[Tensor], *, open_batch: bool) -> fx.GraphModule:
    """Everything that ``graph`` computes from such inputs, backward pass included, as one list of operators.

    With ``open_batch`` their first axis may have any size, unless the network fixes it (``has_dynamic_batch``). Raises
    UnsupportedModelError for a network whose control flow depends on the values of its input.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = [_fake(mode, tensor, open_batch) for tensor in inputs]
    try:
        # This is torch.export's own machinery, but with autograd running inside it. The Python dispatcher is needed
        # because torch's C++ kernels of some operators would fix a symbolic size.
        with mode, enable_python_dispatcher():
            return make_fx(graph, decomposition_table=DECOMPOSITIONS, _allow_non_fake_inputs=True)(*fakes)
    except TRACE_ERRORS as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UnsupportedModelError(f"this network's gradient cannot be written as a graph: {reason}") from error


def has_dynamic_batch(unrolled_graph: fx.GraphModule) -> bool:
    """Whether the graph takes any batch size, or tracing has fixed it to that of the example."""
    first = next(node for node in unrolled_graph.graph.nodes if node.op == "placeholder")
    size = first.meta["val"].shape[0]
    return isinstance(size, torch.SymInt) and not size.node.expr.is_number


def _fake(mode: FakeTensorMode, tensor: Tensor, open_batch: bool) -> Tensor:
    sizes = [DimDynamic.STATIC] * tensor.dim()
    sizes[0] = DimDynamic.DYNAMIC if open_batch else DimDynamic.STATIC
    return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
