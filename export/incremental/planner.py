"""What a graph costs, from its arithmetic and its memory traffic: enough to choose cuts and to tell whether it pays.

The constants were fitted to ONNX Runtime's profiles of whole and incremental sweeps on two cores of an AMD EPYC 9004.
Only their proportions matter for what is decided here, and these differ little between processors.

The cheapest way through a network's cuts, by dynamic programming over what each stage is expected to cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from convlens.explain.sweeps.windows import Windows
from export.incremental.cuts import cuts, patches
from export.incremental.network import Network, Shape, integer, integers
from export.incremental.stages import Stage, stages

# Multiply-adds a second: in convolutions, of a picture's few channels, in groups of some channels and of very few.
_DENSE, _SHALLOW, _GROUPED, _NARROW = 97e9, 60e9, 40e9, 10e9

# What a pool looks at in a second.
_POOLED = 15e9

# Bytes a second: maps that a layer reads and writes, weights that are used once, and positions that are looked up,
# scattered or laid out anew.
_TRAFFIC, _WEIGHTS, _MOVED = 40e9, 22e9, 14e9

# Seconds that any node takes.
_NODE = 10e-6

# Activations that ONNX Runtime computes along with the convolution before them.
_FREE = frozenset({"BatchNormalization", "Clip", "Relu"})
_FLOAT = 4


@dataclass(frozen=True)
class Costs:
    """Seconds for one chunk of windows of this network."""

    network: Network

    def whole(self) -> float:
        """The full sweep's."""
        entry = self.network.shapes[self.network.entry]
        hiding = _NODE + 3 * _bytes(entry) / _TRAFFIC
        return hiding + sum(self._whole_node(node) for node in self._nodes)

    def rest(self, target: str) -> float:
        """Of all that follows a cut, on whole maps, pasting included."""
        position = next(at for at, node in enumerate(self._nodes) if target in node.output)
        shape = self.network.shapes[target]
        return _moved(shape, shape) + sum(self._whole_node(node) for node in self._nodes[position + 1 :])

    def stage(self, one: Stage) -> float:
        count, channels = self.network.shapes[one.source][:2]
        taken = (count, channels, *(line.taken for line in one.crops))
        patch = (count, channels, *(patch.length for patch in one.taken_up))
        shapes = {step.output: self._shape(one, step.output) for step in one.steps} | {one.source: taken}
        steps = sum(
            self._node(step.node, [shapes[name] for name in step.inputs], shapes[step.output]) for step in one.steps
        )
        views = sum(_bytes(taken) for step in one.steps if one.source in step.inputs) - _bytes(taken)
        return _moved(taken, patch) + steps + 2 * views / _MOVED

    def _shape(self, one: Stage, name: str) -> Shape:
        return (*self.network.shapes[name][:-2], *(line.sizes[name] for line in one.crops))

    @property
    def _nodes(self) -> list[onnx.NodeProto]:
        return [*(step.node for step in self.network.steps), *self.network.rest]

    def _whole_node(self, node: onnx.NodeProto) -> float:
        shapes = self.network.shapes
        given = [shapes[name] for name in node.input if name in shapes and name not in self.network.constants]
        made = shapes.get(node.output[0])
        return _NODE if made is None else self._node(node, given, made)

    def _node(self, node: onnx.NodeProto, given: Sequence[Shape], made: Shape) -> float:
        if node.op_type in _FREE:
            return 0.0
        moved = (sum(map(_bytes, given)) + _bytes(made)) / _TRAFFIC
        return _NODE + moved + self._arithmetic(node, given, made)

    def _arithmetic(self, node: onnx.NodeProto, given: Sequence[Shape], made: Shape) -> float:
        weights = [self.network.constants[name] for name in node.input if name in self.network.constants]
        if node.op_type == "Conv" and weights:
            _, fan_in, *kernel = weights[0].dims
            products = math.prod(made) * fan_in * math.prod(list(kernel))
            return float(products) / _rate(fan_in, integer(node, "group", 1))
        if node.op_type in ("Gemm", "MatMul") and given:
            inner = given[0][-1]
            return max(math.prod(made) * inner / _DENSE, _FLOAT * inner * made[-1] / _WEIGHTS)
        if node.op_type in ("MaxPool", "AveragePool"):
            return math.prod(made) * math.prod(integers(node, "kernel_shape", [])) / _POOLED
        return 0.0


def _rate(fan_in: int, groups: int) -> float:
    if groups == 1:
        return _DENSE if fan_in >= 16 else _SHALLOW
    if fan_in == 1:
        return _DENSE
    return _GROUPED if fan_in >= 16 else _NARROW


def _moved(taken: Shape, patch: Shape) -> float:
    """Crop and paste: looked up and scattered, both laid out for convolutions; a scatter takes as long as two."""
    return 12 * _NODE + (4 * _bytes(taken) + 6 * _bytes(patch)) / _MOVED


def _bytes(shape: Shape) -> int:
    return _FLOAT * math.prod(shape)


def free(node: onnx.NodeProto) -> bool:
    """Whether the node comes with the one before it."""
    return node.op_type in _FREE


# Less is not worth a graph that is harder to read; and the expectation may be wrong by a few hundredths.
WORTH = 1.05


@dataclass(frozen=True)
class Plan:
    """Stages from the picture on; behind the last the network runs whole. ``speed_up`` is what is expected of it."""

    stages: tuple[Stage, ...]
    speed_up: float


def planned(network: Network, windows: Windows) -> Plan:
    """The cheapest plan that is proven to be exact; one without stages where no crop is smaller than its map."""
    names, costs = _candidates(network), Costs(network)
    cheapest: dict[int, tuple[float, tuple[Stage, ...]]] = {0: (0.0, ())}
    for i, j, one in stages(network, names, patches(network, windows)):
        if i not in cheapest:
            continue
        before, path = cheapest[i]
        cost = before + costs.stage(one)
        if j not in cheapest or cost < cheapest[j][0]:
            cheapest[j] = (cost, (*path, one))
    whole = costs.whole()
    found = [Plan(path, whole / (cost + costs.rest(names[i]))) for i, (cost, path) in cheapest.items() if i > 0]
    return max(found, key=lambda plan: plan.speed_up, default=Plan((), 1.0))


def _candidates(network: Network) -> list[str]:
    """The cuts, without those before an activation that comes free: it is cheaper to keep what follows it."""
    readers: dict[str, list[bool]] = {}
    for step in network.steps:
        for name in step.inputs:
            readers.setdefault(name, []).append(free(step.node))
    return [name for name in cuts(network) if name == network.entry or readers.get(name) != [True]]
