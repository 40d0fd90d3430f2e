"""Traces the gradient of a class's logit by the image, or by a layer's maps, into a forward graph, which torch's
exporter can export.

torch.export does not export a backward pass. So ``make_fx`` traces it first, operator by operator, each ReLU's rule
included; operators that the exporter does not know are decomposed into ones that it does (``decompositions``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from convlens.errors import RequestError, UnsupportedModelError
from convlens.explain import ForwardPass
from convlens.explain.input_gradient import LayerCut, differentiating, require_reached
from convlens.instrument import ReluRule, RuledRelus, find_layer, private_tree, require_relu_network
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
        grad_NCHW = _target_gradient(logits_NK, target_N, x)
        return grad_NCHW.float(), logits_NK.detach().float()


class MapsGradient(nn.Module):
    """A layer's maps, d logit / d maps, and the logits, of normalised images (N, C, H, W) and a class each (N).

    ``pixels`` is what ``pixels_of_maps`` gives.
    """

    def __init__(self, network: nn.Module, layer: str, pixels: int) -> None:
        super().__init__()
        self.network, self._layer, self._pixels = private_tree(network), layer, pixels
        self._dtype = next(network.parameters()).dtype

    def forward(self, x_NCHW: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cut = LayerCut(self._pixels)
        with torch.enable_grad(), GlobalMeans(), find_layer(self.network, self._layer).register_forward_hook(cut):
            logits_NK: Tensor = self.network(x_NCHW.to(self._dtype).detach())
        maps_NCHW = cut.require_maps(self._layer)
        grad_NCHW = _target_gradient(logits_NK, target_N, maps_NCHW)
        return maps_NCHW.detach().float(), grad_NCHW.float(), logits_NK.detach().float()


def _target_gradient(logits_NK: Tensor, target_N: Tensor, x: Tensor) -> Tensor:
    """Each row's by its own class."""
    target_NK = torch.arange(logits_NK.shape[1], device=x.device) == target_N[:, None]
    (gradient,) = torch.autograd.grad(logits_NK, x, target_NK.to(logits_NK.dtype))
    return gradient


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


def pixels_of_maps(classifier: Classifier, spec: ModelSpec, layer: str) -> int:
    """1 where the layer's maps have one pixel alone, else 2: what a run of it must give to count, as on torch.

    Raises RequestError and UnsupportedModelError as ``ForwardPass.layer_gradient``.
    """
    forward = ForwardPass(classifier, np.zeros((1, spec.channels, *spec.input_size), np.float32))
    try:
        maps_NCHW, _ = forward.layer_gradient(layer, np.zeros(1, np.int64))
    except RequestError as error:
        error.field = "layers"
        raise
    return min(2, maps_NCHW[0, 0].numel())


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
