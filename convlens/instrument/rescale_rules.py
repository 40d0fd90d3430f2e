"""DeepLIFT's rules for ReLU and max pooling, at every call that a network makes, and the refusal of other networks.

The batch holds images in its first half and, in the same order, the references that they are held against in its
second: each step compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from convlens.errors import UnsupportedModelError
from convlens.instrument.relu_rules import RuledRelus

_MAX_POOLS = {functional.max_pool2d, torch.max_pool2d}
# Differences below this are none, and the gradient takes the place of the quotient; captum's value.
_NO_DIFFERENCE = 1e-10

# Steps of the autograd graph through which a difference passes by the same factors as a gradient, without their number.
_LINEAR = {
    "Convolution", "NativeBatchNorm", "CudnnBatchNorm", "MkldnnConvolution", "_Depthwise",
    "AvgPool2D", "AdaptiveAvgPool2D", "MkldnnAdaptiveAvgPool2D", "Mean", "Sum", "T", "Add", "Sub", "Rsub", "Neg",
    "View", "ReshapeAlias", "UnsafeView", "Alias", "Squeeze", "Unsqueeze", "Expand", "Repeat", "Permute", "Transpose",
    "Clone", "ToCopy", "Copy", "CopySlices", "AsStrided", "Cat", "Stack", "Unbind", "Slice", "Split", "SplitWithSizes",
    "Select", "Index", "IndexSelect", "Narrow", "Roll", "Flip", "PixelShuffle", "PixelUnshuffle", "ConstantPadNd",
    "ReflectionPad2D", "ReplicationPad2D", "UpsampleBilinear2D", "UpsampleBicubic2D", "UpsampleNearest2D",
    "ChannelShuffle",
}  # fmt: skip
# Linear where only one factor depends on the image.
_PRODUCTS = {"Mul", "Div", "Mm", "Addmm", "Bmm", "Baddbmm", "Mv", "Addmv", "Dot", "Linear", "Convolution"}
_RULED = {"_RuledRelu", "_RescaledMaxPool"}


class RescaledSteps(RuledRelus):
    """Inside this ``with``, ReLUs and max poolings of the calling thread pass DeepLIFT's multipliers, not gradients.

    Shrikumar et al. 2017, arXiv:1704.02685. A ReLU passes Δout / Δin (the rescale rule). Max pooling hands the rise of
    its maximum to the image's largest place and its fall to the reference's, as captum's DeepLift does; where windows
    overlap, a place gets the sum of its windows (captum keeps one of them). To differentiate is the logit of the
    batch's first half alone.
    """

    # A function mode and not captum's hooks on modules: those miss F.relu and torch.relu, know no ReLU6, and a module
    # that is used twice keeps one call's values for both. The result is a gradient there, or mixed up, without a word.

    keeps_input = True

    def passed(self, grad: Tensor, kept: Tensor, upper: float | None) -> Tensor:
        out = kept.clamp(0.0, upper)
        image, reference = kept.chunk(2)
        difference, rise = image - reference, torch.sub(*out.chunk(2))
        multiplier = torch.where(
            difference.abs() < _NO_DIFFERENCE,
            ((image > 0) & (image < (upper or torch.inf))).to(kept),
            rise / difference,
        )
        return grad * torch.cat([multiplier, multiplier])

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _MAX_POOLS and not (kwargs or {}).get("return_indices", False):
            return _max_pool(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def _max_pool(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """With max_pool2d's arguments in max_pool2d's order."""
    return cast(Tensor, _RescaledMaxPool.apply(input, kernel_size, stride or kernel_size, padding, dilation, ceil_mode))


class _RescaledMaxPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
    ) -> Tensor:
        out, places = torch.ops.aten.max_pool2d_with_indices(
            x, _pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation), ceil_mode
        )
        ctx.save_for_backward(x, out, places)
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        x, out, places = ctx.saved_tensors
        (image, reference), (out_1, out_0), (place_1, place_0) = x.chunk(2), out.chunk(2), places.chunk(2)
        grad_1, largest = grad.chunk(2)[0], torch.maximum(out_1, out_0)
        change = _scattered(grad_1 * (largest - out_0), place_1, image)
        change += _scattered(grad_1 * (out_1 - largest), place_0, image)
        difference = image - reference
        multiplied = torch.where(
            difference.abs() < _NO_DIFFERENCE, _scattered(grad_1, place_1, image), change / difference
        )
        return torch.cat([multiplied, torch.zeros_like(multiplied)]), None, None, None, None, None


def _scattered(values: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """Values summed at their places of maps in the shape of ``like``."""
    flat = torch.zeros(like.shape, dtype=values.dtype, device=values.device).flatten(-2)
    return flat.scatter_add(-1, places.flatten(-2), values.flatten(-2)).view(like.shape)


def _pair(size: Any) -> list[int]:
    pair = [size] if isinstance(size, int) else list(size)
    return pair * 2 if len(pair) == 1 else pair


# ---- which networks


def require_rescaled_network(output: Tensor, x_NCHW: Tensor, *, method: str) -> None:
    """Raise UnsupportedModelError unless every step from ``x_NCHW`` to ``output`` is linear or has a rule here.

    ``output`` was computed inside RescaledSteps; ``method`` names the method in the error.
    """
    depends = _dependent_nodes(output, x_NCHW)
    for node in depends:
        reason = _objection(node, depends)
        if reason:
            raise UnsupportedModelError(
                f"{method} has rules for ReLU, max pooling and linear layers, and this network {reason}; "
                "integrated_gradients and gradient_shap work on any network",
                field="method",
            )


def _objection(node: Any, depends: Mapping[Any, None]) -> str | None:
    """Why this node has no rule, as the end of a sentence about the network; None where it has one."""
    # MulBackward0 -> Mul, torch::autograd::CopyBackwards -> Copy
    step = str(node.name()).rpartition("::")[2].partition("Backward")[0]
    factors = [following in depends for following, _ in node.next_functions]
    if step in _PRODUCTS and sum(factors) > 1:
        return f"multiplies or divides one function of the image by another ({node.name()}), as gates do"
    if step == "Div" and factors[1:] == [True]:
        return f"divides by a function of the image ({node.name()})"
    if step in ("NativeBatchNorm", "CudnnBatchNorm") and node._saved_training:
        return f"normalises by the image's own statistics ({node.name()})"
    if step in _LINEAR | _PRODUCTS | _RULED or step == "AccumulateGrad":
        return None
    return f"takes another step ({node.name()})"


def _dependent_nodes(output: Tensor, x_NCHW: Tensor) -> Mapping[Any, None]:
    """The nodes of the recorded graph that depend on the images, from the leaf on, which is among them."""
    before: dict[Any, list[Any]] = {}  # the nodes that use a node's result
    leaves = []
    for node in _nodes(output):
        if getattr(node, "variable", None) is x_NCHW:
            leaves.append(node)
        for following, _ in node.next_functions:
            if following is not None:
                before.setdefault(following, []).append(node)
    depends: dict[Any, None] = {}
    while leaves:
        node = leaves.pop()
        if node not in depends:
            depends[node] = None
            leaves.extend(before.get(node, []))
    return depends


def _nodes(output: Tensor) -> Iterator[Any]:
    seen: set[Any] = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(following for following, _ in node.next_functions)
