"""What one forward pass shows of a network: its head, and the layers that explanations hold on to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from convlens.errors import ModelError
from convlens.instrument import OUTPUT, private_tree
from convlens.models.head import (
    ACTIVATIONS,
    BOTH_SIGNS,
    OWN_INPUT,
    OWN_OUTPUT,
    step_before,
    step_before_call,
    steps_to_tensor,
)
from convlens.models.network import FORWARD_ERRORS, holds
from convlens.models.preprocessing import Preprocessing
from convlens.types import Activation

_LINEAR = (functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, torch.addmm, torch.einsum)
_FEW = 16  # times as many values as outputs: larger tensors of probabilities are gates and attention
_CONVOLUTIONS = (functional.conv2d, torch.conv2d, torch.ops.aten.conv2d.default)


@dataclass(frozen=True)
class OutputOptions:
    """What the user says of a network's output and layers; None: it is found out.

    ``output`` names the entry of a tuple, mapping or object. ``features``: it is an embedding, and there are no
    classes.
    """

    output: str | int | None = None
    activation: Activation | None = None
    features: bool | None = None
    embedding_layer: str | None = None
    gradcam_layer: str | None = None


@dataclass(frozen=True)
class DiscoveredLayers:
    """``classes`` is K, 0 for a network that gives an embedding; the next three are names of layers, as in
    ``ModelSpec``, and so are ``activation`` and ``head``.

    ``noise_NCHW`` are the two images that went through the network, ``output`` what it returned for them.
    """

    classes: int
    embedding_layer: str
    gradcam_layer: str
    first_convolution: str
    activation: Activation
    head: tuple[str, ...]
    noise_NCHW: Tensor
    output: Any


def discover_layers(
    module: nn.Module, preprocessing: Preprocessing, options: OutputOptions = OutputOptions()
) -> DiscoveredLayers:
    """Run two images of seeded noise through the network and read off which layers are called, and in which order.

    Calls are ordered by their *end*. ``gradcam_layer`` is the last layer with a map larger than 1×1: ``layer4`` in a
    ResNet; ``avgpool`` in AlexNet and VGG, whose adaptive pooling keeps the usual grid; in SqueezeNet, whose
    classifier is itself a convolution, the map of class scores that is then averaged, so that Grad-CAM there is the
    class activation map. In networks that leave the grid early (ViT) it lies early too. A softmax or sigmoid at the
    end, in a layer or by a function, is found and left out of ``head``'s logits. Raises ModelError for what is not a
    convolutional network, and for an output that is not one row an image. The network stays as it was.
    """
    height, width = preprocessing.input_size
    # Two images, so that a network which mixes up batch and channels is noticed by the shape of its output. The second
    # is brighter and stronger: of two alike, a batch norm without statistics of its own makes the same as of one.
    noise_NCHW = torch.randn(2, len(preprocessing.mean), height, width, generator=torch.Generator().manual_seed(0))
    noise_NCHW[1] = 2 * noise_NCHW[1] + 0.5
    tree, given_NCHW = private_tree(module).eval(), noise_NCHW.clone()
    watch, output = _record(tree, given_NCHW)
    first_convolution = _first_convolution(watch)
    steps, result_ND = steps_to_tensor(output, options.output, rows=2)
    steps = (*_own_memory(tree, noise_NCHW, given_NCHW, result_ND), *steps)
    if options.features or (options.features is None and _ends_in_identity(watch.events, result_ND)):
        return DiscoveredLayers(
            0, OUTPUT, _gradcam(watch, options), first_convolution, "none", steps, noise_NCHW, output
        )
    activation, head = _head(watch, output, steps, result_ND, options)
    classes = 2 if BOTH_SIGNS in head else int(result_ND.shape[1])
    embedding_layer = options.embedding_layer or _embedding_layer(watch.events, int(result_ND.shape[1]))
    return DiscoveredLayers(
        classes,
        embedding_layer,
        _gradcam(watch, options),
        _first_convolution(watch),
        activation,
        head,
        noise_NCHW,
        output,
    )


def _own_memory(tree: nn.Module, noise_NCHW: Tensor, given_NCHW: Tensor, result_ND: Tensor) -> tuple[str, ...]:
    """The steps that keep a network from writing into its caller's images, and into what it has returned before."""
    own_input = () if torch.equal(noise_NCHW, given_NCHW) else (OWN_INPUT,)
    return (*own_input, *((OWN_OUTPUT,) if holds(tree, result_ND) else ()))


@dataclass(frozen=True)
class _Call:
    """One finished call of one layer, or of a linear function outside nn.Linear (then ``layer`` is None).

    ``shape`` is None where the output is no tensor; ``output`` is kept for those of two axes alone.
    """

    name: str
    layer: nn.Module | None
    shape: tuple[int, ...] | None
    output: Tensor | None = None


@dataclass(frozen=True)
class _Probability:
    """What a softmax or sigmoid gave, and how often the tensor had been written to by then."""

    activation: Activation
    tensor: Tensor
    version: int

    @property
    def is_unchanged(self) -> bool:
        return self.tensor._version == self.version


class _Watch(TorchFunctionMode):
    """Notes what runs inside: layers as they end, linear functions, and functions that make probabilities."""

    def __init__(self, tree: nn.Module) -> None:
        super().__init__()
        self.events: list[_Call] = []
        self.activations: list[_Probability] = []
        self.convolves = False
        self.has_scripted = False
        for name, layer in tree.named_modules():
            # A scripted layer takes hooks, and does not call them.
            if isinstance(layer, torch.jit.ScriptModule):
                self.has_scripted = True
            elif layer is not tree:
                layer.register_forward_hook(partial(self._note, name))

    def _note(self, name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else None
        self.events.append(_Call(name, layer, shape, output if shape and len(shape) == 2 else None))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in ACTIVATIONS:
            self.activations.append(_Probability(ACTIVATIONS[func], result, result._version))
        elif func in _LINEAR and isinstance(result, Tensor) and result.ndim == 2:
            self.events.append(_Call("", None, tuple(result.shape)))
        self.convolves |= func in _CONVOLUTIONS
        return result


def _record(tree: nn.Module, noise_NCHW: Tensor) -> tuple[_Watch, Any]:
    """What ran in the order in which it ended, and the network's output."""
    watch = _Watch(tree)
    try:
        with torch.no_grad(), watch:
            return watch, tree(noise_NCHW)
    except FORWARD_ERRORS as error:
        shape = "×".join(map(str, noise_NCHW.shape))
        raise ModelError(
            f"the network failed on a batch of images of {shape}: {type(error).__name__}: {error}"
        ) from error


def _ends_in_identity(events: Sequence[_Call], result_ND: Tensor) -> bool:
    """Whether the classifier was taken off: nn.Identity in its place, and no linear layer right before it."""
    taken_off = False
    for call in reversed(events):
        if call.layer is None or isinstance(call.layer, nn.Linear | nn.Conv2d):
            return False
        if next(call.layer.children(), None) is not None or isinstance(call.layer, nn.Dropout | nn.Flatten):
            continue
        if not isinstance(call.layer, nn.Identity):
            return taken_off
        # Some of timm's heads end in an Identity for what others flatten, and some have convolutions of 1×1 for layers.
        taken_off |= call.shape is not None and (*call.shape, 1, 1)[:4] == (*result_ND.shape, 1, 1)
    return False


def _head(
    watch: _Watch, output: Any, steps: tuple[str, ...], result_ND: Tensor, options: OutputOptions
) -> tuple[Activation, tuple[str, ...]]:
    """The activation, and the steps to logits."""
    found, before = _activation_at_the_end(watch, output, result_ND)
    if options.activation == "none":
        return "none", steps  # probabilities, if that is what they are, are explained as they are
    activation = options.activation or found
    # Explanations are of logits: a softmax saturates, and with it every gradient (p = 1.000: 1e-9, logit 61).
    if not found and (_is_distribution(result_ND) or _is_made_of(watch.activations, result_ND)):
        raise ModelError(
            "the network's outputs are probabilities already, and which logits they are of was not found; ConvLens "
            "needs those. Return them, or give activation='none' to explain the probabilities themselves"
        )
    if result_ND.shape[1] == 1:
        if activation == "softmax":
            raise ModelError(
                "the network has a single output, of which softmax makes 1 always; for class 1 against class 0 it "
                "needs activation='sigmoid'"
            )
        return "sigmoid", (*before, *steps, BOTH_SIGNS)
    return activation or "softmax", (*before, *steps)


def _is_distribution(result_ND: Tensor) -> bool:
    sums_to_one = torch.allclose(result_ND.sum(1), torch.ones(len(result_ND)), atol=1e-5)
    return result_ND.shape[1] > 1 and bool((result_ND >= 0).all()) and sums_to_one


def _is_made_of(probabilities: Sequence[_Probability], result_ND: Tensor) -> bool:
    """Whether all outputs are what some softmax or sigmoid gave: several heads side by side, or parts of one."""
    few = _FEW * result_ND.numel()
    given = [each.tensor.flatten() for each in probabilities if each.is_unchanged and each.tensor.numel() <= few]
    return bool(given) and bool(torch.isin(result_ND, torch.cat(given).to(result_ND.dtype)).all())


def _activation_at_the_end(watch: _Watch, output: Any, result_ND: Tensor) -> tuple[Activation | None, tuple[str, ...]]:
    """The softmax or sigmoid that made the output, and the step that leaves it out."""
    for number, made in reversed(list(enumerate(watch.activations, 1))):
        if not (_same(made.tensor, result_ND) and made.is_unchanged):
            continue
        layers = [call.name for call in watch.events if call.output is not None and _is_activation(call.layer)]
        same = [call.name for call in watch.events if call.name in layers and _same(call.output, result_ND)]
        return made.activation, ((step_before(same[-1]),) if same else (step_before_call(number),))
    return None, ()


def _is_activation(layer: nn.Module | None) -> bool:
    return isinstance(layer, nn.Softmax | nn.LogSoftmax | nn.Sigmoid)


def _same(one: Tensor | None, other: Tensor) -> bool:
    """Whether two tensors hold the same memory, however they are shaped."""
    return one is not None and one.numel() == other.numel() and one.data_ptr() == other.data_ptr()


def _first_convolution(watch: _Watch) -> str:
    for call in watch.events:
        if isinstance(call.layer, nn.Conv2d):
            return call.name
    if watch.convolves or watch.has_scripted:
        return ""  # it convolves by functions, or is scripted and shows nothing of what is in it
    raise ModelError("not a convolutional network: no nn.Conv2d was called")


def _embedding_layer(events: Sequence[_Call], classes: int) -> str:
    # From the end: a network may have heads of the same width that run earlier, or of other widths that run later.
    for position, call in reversed(list(enumerate(events))):
        if call.layer is None and call.shape is not None and call.shape[1] == classes:
            return _last_vector(events[:position])
        if call.layer is not None and _outputs(call.layer) == classes:
            return call.name
    return _last_vector(events, other_than=classes)


def _last_vector(events: Sequence[_Call], other_than: int | None = None) -> str:
    """What the last layer with two axes gives, or without one the last map, averaged; empty where there is neither."""
    for axes in (2, 4):
        for call in reversed(events):
            if (
                call.layer is not None
                and call.shape is not None
                and len(call.shape) == axes
                and call.shape[1] != other_than
            ):
                return f"{call.name}{OUTPUT}"
    return ""


def _outputs(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else None


def _gradcam(watch: _Watch, options: OutputOptions) -> str:
    if options.gradcam_layer is not None:
        return options.gradcam_layer
    for call in reversed(watch.events):
        if call.shape is not None and len(call.shape) == 4 and min(call.shape[2:]) > 1:
            return call.name
    # What torch.export gives runs functions and no layers.
    if watch.has_scripted or not any(call.shape is not None and len(call.shape) == 4 for call in watch.events):
        return ""
    raise ModelError("no layer gave a map larger than 1×1 pixel, so there is no place to look at; give a larger size=")
