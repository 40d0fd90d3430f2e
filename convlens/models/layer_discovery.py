"""What one forward pass shows of a network: its number of classes, and the layers that explanations hold on to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convlens.errors import ModelError
from convlens.instrument import private_tree
from convlens.models.preprocessing import Preprocessing

# What the layers of a network that does not fit its input raise, in practice (timm asserts sizes).
_FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True)
class DiscoveredLayers:
    """``classes`` is K; the other three are names of layers, as in ``ModelSpec``."""

    classes: int
    embedding_layer: str
    gradcam_layer: str
    first_convolution: str


def discover_layers(module: nn.Module, preprocessing: Preprocessing) -> DiscoveredLayers:
    """Run two images of seeded noise through the network and read off which layers are called, and in which order.

    Calls are ordered by their *end*. ``gradcam_layer`` is the last layer with a map larger than 1×1: ``layer4`` in a
    ResNet; ``avgpool`` in AlexNet and VGG, whose adaptive pooling keeps the usual grid; in SqueezeNet, whose
    classifier is itself a convolution, the map of class scores that is then averaged, so that Grad-CAM there is the
    class activation map. In networks that leave the grid early (ViT) it lies early too. Raises ModelError for what is
    not a convolutional classifier with at least two classes. The network stays as it was.
    """
    size = preprocessing.crop
    # Two images, so that a network which mixes up batch and channels is noticed by the shape of its output.
    noise_NCHW = torch.randn(2, len(preprocessing.mean), size, size, generator=torch.Generator().manual_seed(0))
    calls, output = _record(private_tree(module).eval(), noise_NCHW)
    classes, first = _classes(output), _first_convolution(calls)
    return DiscoveredLayers(classes, _embedding_layer(calls, classes), _gradcam_layer(calls), first)


@dataclass(frozen=True)
class _Call:
    """One finished call of one layer; ``shape`` is None where the output is no tensor."""

    name: str
    layer: nn.Module
    shape: tuple[int, ...] | None


def _record(tree: nn.Module, noise_NCHW: Tensor) -> tuple[Sequence[_Call], Any]:
    """All calls of layers in the order in which they finish, and the network's output."""
    calls: list[_Call] = []
    for name, layer in tree.named_modules():
        if layer is not tree:
            layer.register_forward_hook(partial(_note, calls, name))
    try:
        with torch.no_grad():
            return calls, tree(noise_NCHW)
    except _FORWARD_ERRORS as error:
        shape = "×".join(map(str, noise_NCHW.shape))
        raise ModelError(
            f"the network failed on a batch of images of {shape}: {type(error).__name__}: {error}"
        ) from error


def _note(calls: list[_Call], name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
    calls.append(_Call(name, layer, tuple(output.shape) if isinstance(output, Tensor) else None))


def _classes(output: Any) -> int:
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != 2:
        result = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ModelError(f"two images gave {result}; a classifier gives logits, one row an image: (2, K)")
    # Explanations are of logits: a softmax saturates, and with it every gradient (p = 1.000: 1e-9, logit 61).
    if output.shape[1] < 2:
        raise ModelError(
            "the network has a single output, of which softmax makes 1 always; ConvLens needs one logit a class"
        )
    if bool((output >= 0).all()) and torch.allclose(output.sum(1), torch.ones(2), atol=1e-5):
        raise ModelError("the network's output is a softmax already; ConvLens needs the logits before it")
    return int(output.shape[1])


def _first_convolution(calls: Sequence[_Call]) -> str:
    for call in calls:
        if isinstance(call.layer, nn.Conv2d):
            return call.name
    raise ModelError("not a convolutional network: no nn.Conv2d was called")


def _embedding_layer(calls: Sequence[_Call], classes: int) -> str:
    # From the end: a network may have heads of the same width that run earlier, or of other widths that run later.
    for call in reversed(calls):
        if _outputs(call.layer) == classes:
            return call.name
    raise ModelError(
        f"no nn.Linear or nn.Conv2d with {classes} outputs was called, so there is no layer whose input is the "
        "embedding"
    )


def _outputs(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else None


def _gradcam_layer(calls: Sequence[_Call]) -> str:
    for call in reversed(calls):
        if call.shape is not None and len(call.shape) == 4 and min(call.shape[2:]) > 1:
            return call.name
    raise ModelError("no layer gave a map larger than 1×1 pixel, so there is no place to look at; give a larger size=")
