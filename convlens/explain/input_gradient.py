"""The gradient of a score by the image, or by a layer's maps, and why there is none where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from convlens.errors import RequestError, UnsupportedModelError
from convlens.instrument import graph_nodes
from convlens.runtime.memory import is_out_of_memory

_NO_GRADIENT = (
    "no gradient reaches the {place}: a part of the network runs under torch.no_grad() or inference_mode(), is behind "
    ".detach(), in a reentrant checkpoint, or writes into memory of its own; take that out, or use occlusion, which "
    "needs no gradient"
)
# Of torch's messages where it does not know a derivative, a network writes into what must be kept, or asks for numpy.
_ABOUT_GRADIENTS = (
    "require grad",
    "requires grad",
    "requires_grad",
    "backward",
    "derivative",
    "differentiable",
    "inplace operation",
    "in-place operation",
    "inference tensor",
)
_REENTRANT = "CheckpointFunctionBackward"


def input_gradient(
    score: Tensor, x: Tensor, *, module: nn.Module, method: str = "", place: str = "image", keep: bool = False
) -> Tensor:
    """d score / d x; ``x`` is a leaf of the caller's own, ``module`` the network between the two.

    ``keep`` leaves the recorded graph for further gradients. Raises UnsupportedModelError, naming ``method``, where no
    gradient reaches the ``place`` that ``x`` stands for, and for a network that torch cannot differentiate.
    """
    require_reached(score, method=method, place=place)
    with differentiating(method):
        if _bears_backward_alone(score, module):
            torch.autograd.backward(score, retain_graph=keep)
            gradient, x.grad = x.grad, None
        else:
            # autograd.grad and never backward(): that would compute, and fill, the gradients of all weights as well,
            # and took 2.6 to 5.3 forward passes against 1.9 to 2.1.
            (gradient,) = torch.autograd.grad(score, x, retain_graph=keep, allow_unused=True)
    if gradient is None:
        raise UnsupportedModelError(_message(method, place), field="method")
    return gradient


def _bears_backward_alone(score: Tensor, module: nn.Module) -> bool:
    """Whether a part of the network is in a reentrant checkpoint, and none of its weights would be given a gradient."""
    # Looking through the graph of ResNet-50 takes half a millisecond.
    checkpointed = any(node.name() == _REENTRANT for node in graph_nodes(score))
    return checkpointed and not any(weight.requires_grad for weight in module.parameters())


def require_reached(score: Tensor, *, method: str = "", place: str = "image") -> None:
    """UnsupportedModelError for a score whose recorded graph is empty."""
    if not score.requires_grad:
        raise UnsupportedModelError(_message(method, place), field="method")


class LayerCut:
    """A forward hook that begins the graph at a layer's maps of ``pixels`` or more, those of its last run that has any.

    What lies before the layer needs no graph. Runs that give no such maps (of a ReLU that serves the head as well) are
    left as they are.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._runs = 0
        self.maps: Tensor | None = None
        self.other: object = None

    def __call__(self, _: nn.Module, __: object, out: object) -> Tensor | None:
        self._runs += 1
        if not isinstance(out, Tensor) or out.ndim != 4 or math.prod(out.shape[2:]) < self._pixels:
            self.other = out
            return None
        self.maps = out.detach().requires_grad_()
        # A clone goes on, since an in-place ReLU behind the layer would overwrite what the layer gave.
        return self.maps.clone()

    def require_maps(self, layer: str) -> Tensor:
        """The maps; RequestError where there are none."""
        if self.maps is not None:
            return self.maps
        if not self._runs:
            raise RequestError(
                f"layer {layer!r} exists but did not run in this forward pass; choose another", field="options.layer"
            )
        given = str(tuple(self.other.shape)) if isinstance(self.other, Tensor) else f"a {type(self.other).__name__}"
        raise RequestError(
            f"layer {layer!r} has no map: it gives {given}, and this method needs (N, C, H, W); choose an earlier one",
            field="options.layer",
        )


@contextmanager
def differentiating(method: str = "") -> Iterator[None]:
    """Inside, what torch raises where it cannot record or differentiate a network is an UnsupportedModelError.

    Not where memory ran out: then a smaller batch may do. Nor what a network raises for reasons of its own.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) or not any(word in str(error).lower() for word in _ABOUT_GRADIENTS):
            raise
        # Scripted networks put the interpreter's own words first, and torch's at the end.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = (lines[-1] if "TorchScript" in lines[0] else lines[0]).removeprefix("RuntimeError: ")[:300]
        raise UnsupportedModelError(
            f"{_prefix(method)}torch cannot differentiate this network: {reason.rstrip('.')}; use occlusion, which "
            "needs no gradient",
            field="method",
        ) from error


def _message(method: str, place: str) -> str:
    return _prefix(method) + _NO_GRADIENT.format(place=place)


def _prefix(method: str) -> str:
    return f"{method}: " if method else ""
