"""The trunk of a network: layers that everything behind them is computed from, and those that jobs take by default."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convlens.errors import RequestError
from convlens.instrument import find_layer, in_format_of, private_tree
from convlens.models import Classifier

Node = Any  # of autograd's graph

_WINDOWED = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.FractionalMaxPool2d)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
# Shares of the depth: as the receptive field does, what can be inverted changes most in the first half.
_INVERTED_DEPTHS = (0.0, 0.2, 0.45, 0.8, 1.0)
_ONLY_DEPTH = 0.7  # of a dream, in a network of one resolution
_TEXTURE_STRIDE = 12  # between 8 and 16, for maps of odd sides: 27 units of 224 pixels are stride 8


@dataclass(frozen=True)
class TrunkLayer:
    """A layer's name and the size of its map, in a pass of the network's own size of image."""

    name: str
    map_size: tuple[int, int]


def trunk(classifier: Classifier) -> list[TrunkLayer]:
    """The layers with a map that widen what a unit sees (convolutions, pooling, blocks of them), in running order.

    Every path from the image to the output passes through each: in a ResNet the blocks and not the convolutions in
    them, in a DenseNet the dense blocks and the transitions. Found by one pass and its gradient graph. Where branches
    run beside each other, so that fewer than half of the resolutions have such a layer (HRNet), all layers count.
    RequestError where there is no map, or no gradient reaches the image.
    """
    calls, output_node, image_node = _record(classifier)
    articulations = _articulations(output_node, image_node)
    if not articulations:
        raise RequestError(
            f"no gradient of {classifier.spec.name}'s output reaches the image, and this job needs it", field="model"
        )
    every_layer = _trunk_layers(classifier.module, calls, {call.node for call in calls.values()})
    layers = _trunk_layers(classifier.module, calls, articulations)
    if len(_resolutions(layers)) < len(_resolutions(every_layer)) / 2:
        layers = every_layer
    if not layers:
        raise RequestError(
            f"no convolution or pooling of {classifier.spec.name} gives a map of more than one place, so there is no "
            "layer to take by default; name layers by their dotted names, or use another network",
            field="layers",
        )
    return layers


def dream_layers(classifier: Classifier) -> tuple[str, ...]:
    """The last layer before the coarsest resolution, where units answer to parts of objects."""
    layers = trunk(classifier)
    sizes = sorted(_resolutions(layers), key=math.prod)
    if len(sizes) == 1:
        return (layers[round(_ONLY_DEPTH * (len(layers) - 1))].name,)
    return ([layer.name for layer in layers if layer.map_size == sizes[1]][-1],)


def inversion_layers(classifier: Classifier) -> tuple[str, ...]:
    """Up to five layers from the first to the last, by their depth."""
    layers = trunk(classifier)
    places = dict.fromkeys(round(depth * (len(layers) - 1)) for depth in _INVERTED_DEPTHS)
    return tuple(layers[place].name for place in places)


def texture_layers(classifier: Classifier) -> tuple[str, ...]:
    """The first and the last layer at each resolution down to an eighth of the image's, or at the first one."""
    layers = trunk(classifier)
    height, _ = classifier.spec.input_size
    sizes = _resolutions(layers)
    fine = [size for size in sizes if height < _TEXTURE_STRIDE * size[0]] or sizes[:1]
    chosen: dict[str, None] = {}
    for size in fine:
        names = [layer.name for layer in layers if layer.map_size == size]
        chosen |= dict.fromkeys((names[0], names[-1]))
    return tuple(chosen)


def _resolutions(layers: Sequence[TrunkLayer]) -> list[tuple[int, int]]:
    """All different sizes of maps, in running order."""
    return list(dict.fromkeys(layer.map_size for layer in layers))


# ---- one pass


@dataclass(frozen=True)
class _Call:
    """The last call of a layer: the sizes of the maps that came and went, None for what is no map, and its node."""

    size_before: tuple[int, int] | None
    size: tuple[int, int] | None
    node: Node


def _record(classifier: Classifier) -> tuple[Mapping[str, _Call], Node, Node]:
    """The calls of layers by name, in the order in which they end; the output's node, and the image's."""
    spec = classifier.spec
    tree, calls = private_tree(classifier.module), dict[str, _Call]()
    for name, layer in tree.named_modules():
        # Scripted modules take no Python hooks.
        if name and not isinstance(layer, torch.jit.ScriptModule):
            layer.register_forward_hook(partial(_note, calls, name))
    parameter = next((p for p in tree.parameters() if p.is_floating_point()), None)
    x_NCHW = torch.zeros(1, spec.channels, *spec.input_size, device=classifier.device)
    x_NCHW = x_NCHW.to(parameter.dtype if parameter is not None else torch.float32).requires_grad_()
    # A view's node lies between the image and the network, so that it can be told from the image itself.
    image_NCHW = x_NCHW.view_as(x_NCHW)
    with torch.enable_grad():
        output = tree(in_format_of(classifier.module, image_NCHW))
    return calls, output.grad_fn, image_NCHW.grad_fn


def _note(calls: dict[str, _Call], name: str, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    calls.pop(name, None)  # the last call counts, also in the order
    before = inputs[0] if inputs else None
    calls[name] = _Call(_map_size(before), _map_size(output), output.grad_fn if isinstance(output, Tensor) else None)


def _map_size(value: Any) -> tuple[int, int] | None:
    if not isinstance(value, Tensor) or value.ndim != 4:
        return None
    return int(value.shape[2]), int(value.shape[3])


def _articulations(output: Node, image: Node) -> set[Node]:
    """The nodes that lie on every path from the output to the image; empty where there is no path."""
    order = _topological(output)
    place = {node: n for n, node in enumerate(order)}
    reaching = {image} if image in place else set()
    for node in reversed(order):
        if any(following in reaching for following in _next(node)):
            reaching.add(node)
    # Swept from the output: a node that no edge jumps over is on every path.
    farthest, found = 0, set()
    for node in order:
        if node not in reaching:
            continue
        if farthest <= place[node]:
            found.add(node)
        farthest = max([farthest, *(place[following] for following in _next(node) if following in reaching)])
    return found


def _topological(output: Node) -> list[Node]:
    """All nodes behind the output, each before those it was computed from; none without a gradient."""
    ended: list[Node] = []
    begun: set[Node] = set()
    stack = [(output, False)] if output is not None else []
    while stack:
        node, complete = stack.pop()
        if complete:
            ended.append(node)
        elif node not in begun:
            begun.add(node)
            stack.append((node, True))
            stack += [(following, False) for following in _next(node)]
    return ended[::-1]


def _next(node: Node) -> list[Node]:
    return [following for following, _ in node.next_functions if following is not None]


# ---- which layers


def _trunk_layers(module: nn.Module, calls: Mapping[str, _Call], nodes: set[Node]) -> list[TrunkLayer]:
    on_trunk = {name: call.size for name, call in calls.items() if call.size and min(call.size) > 1}
    on_trunk = {name: size for name, size in on_trunk.items() if calls[name].node in nodes}
    spatial = {name for name in on_trunk if _is_spatial(find_layer(module, name), calls[name])}
    chosen = _units(module, "", spatial, calls)
    return [TrunkLayer(name, on_trunk[name]) for name in calls if name in chosen]


def _units(module: nn.Module, name: str, spatial: set[str], calls: Mapping[str, _Call]) -> set[str]:
    """The largest layers, from this one downwards, that are not merely several of the trunk's one after another."""
    children = list(_children(module, name, calls))
    within = [(child, path) for child, path in children if path in spatial]
    # A Sequential of one block is called like the block; another of one convolution adds its normalisation to it.
    only = len(children) == 1 and isinstance(module, nn.Sequential)
    if name and (not within or (len(within) == 1 and not only)):
        return {name} & spatial
    return set().union(*(_units(child, path, spatial, calls) for child, path in within))


def _children(module: nn.Module, name: str, calls: Mapping[str, _Call]) -> Iterator[tuple[nn.Module, str]]:
    """Direct children that ran, and those within a list of modules, which itself does not run."""
    for key, child in module.named_children():
        path = f"{name}.{key}" if name else key
        if path in calls:
            yield child, path
        else:
            yield from _children(child, path, calls)


def _is_spatial(layer: nn.Module, call: _Call) -> bool:
    """Whether a unit of the layer's map depends on several units of the map before."""
    return call.size_before != call.size or any(map(_has_window, layer.modules()))


def _has_window(layer: nn.Module) -> bool:
    if not isinstance(layer, _CONVOLUTIONS + _WINDOWED):
        return False
    kernel = getattr(layer, "kernel_size", 1)
    return max(kernel) > 1 if isinstance(kernel, tuple) else int(kernel) > 1
