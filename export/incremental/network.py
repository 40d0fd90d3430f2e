"""Reads the network from an exported chunk: from the occluded image on, as far as maps keep their positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import numpy_helper, shape_inference

from convlens.runtime.graph_contract import FILL
from export.incremental.intervals import POINT, Reach

# Elementwise, of one input.
_UNARY_NAMES = (
    "Abs BatchNormalization Cast Ceil Celu Clip Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log "
    "Mish Neg Reciprocal Relu Round Selu Sigmoid Softplus Softsign Sqrt Swish Tanh ThresholdedRelu"
)
_UNARY = frozenset(_UNARY_NAMES.split())
# Elementwise, of several inputs, of which some may be constants that do not vary over space.
_BROADCAST = frozenset(["Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum", "Where"])
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """A node that computes a map from maps, and its reach along the rows and along the columns.

    Maps are (N, C, H, W), or (N, H, W) between selecting one channel and unsqueezing it again.
    """

    node: onnx.NodeProto
    inputs: tuple[str, ...]
    output: str
    reaches: tuple[Reach, Reach]


@dataclass(frozen=True)
class Network:
    """A chunk's graph in parts.

    ``before`` computes the network's input, ``picture``; ``entry`` is that with the windows occluded. ``steps`` follow
    from there; ``rest`` are the nodes after the last step and what else they depend on. ``shapes`` are those of all
    values whose size is known.
    """

    before: tuple[onnx.NodeProto, ...]
    picture: str
    entry: str
    steps: tuple[Step, ...]
    rest: tuple[onnx.NodeProto, ...]
    shapes: Mapping[str, Shape]
    constants: Mapping[str, onnx.TensorProto]

    def size(self, name: str, axis: int) -> int:
        """Height (axis 0) or width (axis 1) of a map."""
        return self.shapes[name][axis - 2]


def read_network(chunk: onnx.ModelProto) -> Network | None:
    """The network of a chunk of occluded scores; None where the node that occludes cannot be identified."""
    graph = shape_inference.infer_shapes(chunk, data_prop=True).graph
    hiding = [node for node in graph.node if node.op_type == "Where" and node.input[1] == FILL]
    if len(hiding) != 1:
        return None
    picture, entry = hiding[0].input[2], hiding[0].output[0]
    after = _downstream(graph.node, entry)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes = _shapes(graph)
    steps = tuple(_steps(after, entry, shapes, constants))
    taken = {step.output for step in steps}
    rest = [node for node in after if node.output[0] not in taken]
    stop = {entry, *(name for node in after for name in node.output)}
    beside = _upstream(graph.node, {name for node in rest for name in node.input} - stop)
    before = _upstream(graph.node, {picture})
    return Network(before, picture, entry, steps, (*beside, *rest), shapes, constants)


def _downstream(nodes: Sequence[onnx.NodeProto], name: str) -> list[onnx.NodeProto]:
    reached, result = {name}, []
    for node in nodes:
        if reached.intersection(node.input):
            reached.update(node.output)
            result.append(node)
    return result


def _upstream(nodes: Sequence[onnx.NodeProto], names: set[str]) -> tuple[onnx.NodeProto, ...]:
    needed, result = set(names), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            result.append(node)
    return tuple(reversed(result))


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Of all values whose every dimension is known."""
    shapes = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _steps(
    nodes: Sequence[onnx.NodeProto], entry: str, shapes: Mapping[str, Shape], constants: Mapping[str, onnx.TensorProto]
) -> Iterator[Step]:
    """The nodes from map to map, until the first whose reach is not known."""
    maps = {entry}
    for node in nodes:
        inputs = tuple(name for name in node.input if name in maps)
        if not _are_maps((*inputs, node.output[0]), shapes, shapes[entry][0]):
            return
        is_flat = any(len(shapes[name]) == 3 for name in inputs)
        reaches = _reaches_flat(node, inputs, constants) if is_flat else _reaches(node, inputs, constants)
        if reaches is None or not _sized(node, inputs, reaches, shapes):
            return
        maps.add(node.output[0])
        yield Step(node, inputs, node.output[0], reaches)


def _are_maps(names: Sequence[str], shapes: Mapping[str, Shape], count: int) -> bool:
    """Whether all have the batch as first axis and the positions as last."""
    return all(len(shapes.get(name, ())) in (3, 4) and shapes[name][0] == count for name in names)


def _sized(
    node: onnx.NodeProto, inputs: Sequence[str], reaches: tuple[Reach, Reach], shapes: Mapping[str, Shape]
) -> bool:
    """Whether interval arithmetic gives the size that ONNX's shape inference gives, from inputs of one size."""
    if len({shapes[name][-2:] for name in inputs}) != 1:
        return False
    sizes = zip(reaches, shapes[inputs[0]][-2:], shapes[node.output[0]][-2:], strict=True)
    return all(reach.size(before) == after for reach, before, after in sizes)


def _reaches(
    node: onnx.NodeProto, inputs: Sequence[str], constants: Mapping[str, onnx.TensorProto]
) -> tuple[Reach, Reach] | None:
    """The node's reach; None for one that mixes positions in another way, or of an unknown kind."""
    others = [name for name in node.input if name and name not in inputs]
    if not _is_plain(node) or any(name not in constants for name in others):
        return None
    if node.op_type in ("Conv", "MaxPool", "AveragePool"):
        return _sliding(node, inputs, constants)
    if integer(node, "training_mode", 0):
        return None
    if node.op_type in _UNARY:
        return (POINT, POINT) if list(inputs) == [node.input[0]] else None
    if node.op_type in _BROADCAST:
        return (POINT, POINT) if all(_is_uniform(constants[name]) for name in others) else None
    if node.op_type == "Gather":  # of channels
        first = list(inputs) == [node.input[0]] and integer(node, "axis", 0) in (1, -3)
        return (POINT, POINT) if first and len(constants[node.input[1]].dims) < 2 else None
    if node.op_type == "Concat":
        return (POINT, POINT) if not others and integer(node, "axis", 0) in (1, -3) else None
    return None


def _reaches_flat(
    node: onnx.NodeProto, inputs: Sequence[str], constants: Mapping[str, onnx.TensorProto]
) -> tuple[Reach, Reach] | None:
    """The same for maps of one channel, (N, H, W): arithmetic with single numbers, and making them (N, 1, H, W)."""
    others = [constants.get(name) for name in node.input if name and name not in inputs]
    if not _is_plain(node) or len(inputs) != 1 or any(other is None for other in others):
        return None
    if node.op_type == "Unsqueeze":
        return (POINT, POINT) if numpy_helper.to_array(constants[node.input[1]]).tolist() == [1] else None
    is_single = all(other is not None and len(other.dims) == 0 for other in others)
    return (POINT, POINT) if node.op_type in _BROADCAST and is_single else None


def _is_plain(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx") and sum(map(bool, node.output)) == 1


def _is_uniform(constant: onnx.TensorProto) -> bool:
    """Whether it is broadcast over space and adds no dimensions."""
    return len(constant.dims) <= 4 and all(side == 1 for side in list(constant.dims)[-2:])


def _sliding(
    node: onnx.NodeProto, inputs: Sequence[str], constants: Mapping[str, onnx.TensorProto]
) -> tuple[Reach, Reach] | None:
    auto_pad = any(attribute.name == "auto_pad" and attribute.s != b"NOTSET" for attribute in node.attribute)
    if list(inputs) != [node.input[0]] or auto_pad:
        return None
    sides = integers(node, "kernel_shape", list(constants[node.input[1]].dims)[2:] if len(node.input) > 1 else [])
    strides, dilations = integers(node, "strides", [1, 1]), integers(node, "dilations", [1, 1])
    pads, ceil = integers(node, "pads", [0, 0, 0, 0]), integer(node, "ceil_mode", 0) == 1
    if len(sides) != 2 or min(pads) < 0:
        return None
    rows, columns = (Reach((sides[i] - 1) * dilations[i] + 1, strides[i], pads[i], pads[i + 2], ceil) for i in (0, 1))
    return rows, columns


def integer(node: onnx.NodeProto, name: str, otherwise: int) -> int:
    """The node's attribute of that name, or its default."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), otherwise)


def integers(node: onnx.NodeProto, name: str, otherwise: Sequence[int]) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), list(otherwise))
