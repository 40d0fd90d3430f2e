"""The cheapest plan through a network's cuts, by dynamic programming over the expected cost of each stage.

Costs are seconds, from arithmetic and memory traffic. The constants were fitted to ONNX Runtime's profiles of full and
incremental sweeps on two cores of an AMD EPYC 9004; only their proportions matter here, and these differ little between
processors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from convlens.explain.sweeps.windows import Windows
from export.incremental.cuts import changed_patches, find_cuts
from export.incremental.network import Network, Shape, integer, integers
from export.incremental.stages import Stage, possible_stages

# Multiply-adds a second: in convolutions, of an image's few channels, in groups of several channels and of very few.
_DENSE, _SHALLOW, _GROUPED, _NARROW = 97e9, 60e9, 40e9, 10e9
# Values that a pool reads in a second.
_POOLED = 15e9
# Bytes a second: maps that a layer reads and writes, weights that are used once, and positions that are gathered,
# scattered or transposed.
_TRAFFIC, _WEIGHTS, _MOVED = 40e9, 22e9, 14e9
# Seconds for any node.
_NODE = 10e-6
# Activations that ONNX Runtime fuses into the convolution before them.
_FUSED = frozenset({"BatchNormalization", "Clip", "Relu"})
_FLOAT = 4


@dataclass(frozen=True)
class CostModel:
    """Expected seconds for one chunk of windows."""

    network: Network

    def whole(self) -> float:
        """A full sweep."""
        entry = self.network.shapes[self.network.entry]
        hiding = _NODE + 3 * _bytes(entry) / _TRAFFIC
        return hiding + sum(self._whole_node(node) for node in self._nodes)

    def rest(self, target: str) -> float:
        """Everything after a cut, on whole maps, pasting included."""
        position = next(at for at, node in enumerate(self._nodes) if target in node.output)
        shape = self.network.shapes[target]
        return _moved(shape, shape) + sum(self._whole_node(node) for node in self._nodes[position + 1 :])

    def stage(self, stage: Stage) -> float:
        """Taking the crops, pasting the patches in, and the stage's layers."""
        count, channels = self.network.shapes[stage.source][:2]
        taken = (count, channels, *(line.taken for line in stage.crops))
        patch = (count, channels, *(patch.length for patch in stage.input_patches))
        shapes = {step.output: self._shape(stage, step.output) for step in stage.steps} | {stage.source: taken}
        steps = sum(
            self._node(step.node, [shapes[name] for name in step.inputs], shapes[step.output]) for step in stage.steps
        )
        views = sum(_bytes(taken) for step in stage.steps if stage.source in step.inputs) - _bytes(taken)
        return _moved(taken, patch) + steps + 2 * views / _MOVED

    def _shape(self, stage: Stage, name: str) -> Shape:
        return (*self.network.shapes[name][:-2], *(line.sizes[name] for line in stage.crops))

    @property
    def _nodes(self) -> list[onnx.NodeProto]:
        return [*(step.node for step in self.network.steps), *self.network.rest]

    def _whole_node(self, node: onnx.NodeProto) -> float:
        shapes = self.network.shapes
        inputs = [shapes[name] for name in node.input if name in shapes and name not in self.network.constants]
        output = shapes.get(node.output[0])
        return _NODE if output is None else self._node(node, inputs, output)

    def _node(self, node: onnx.NodeProto, inputs: Sequence[Shape], output: Shape) -> float:
        if node.op_type in _FUSED:
            return 0.0
        moved = (sum(map(_bytes, inputs)) + _bytes(output)) / _TRAFFIC
        return _NODE + moved + self._arithmetic(node, inputs, output)

    def _arithmetic(self, node: onnx.NodeProto, inputs: Sequence[Shape], output: Shape) -> float:
        weights = [self.network.constants[name] for name in node.input if name in self.network.constants]
        if node.op_type == "Conv" and weights:
            _, fan_in, *kernel = weights[0].dims
            products = math.prod(output) * fan_in * math.prod(list(kernel))
            return float(products) / _rate(fan_in, integer(node, "group", 1))
        if node.op_type in ("Gemm", "MatMul") and inputs:
            inner = inputs[0][-1]
            return max(math.prod(output) * inner / _DENSE, _FLOAT * inner * output[-1] / _WEIGHTS)
        if node.op_type in ("MaxPool", "AveragePool"):
            return math.prod(output) * math.prod(integers(node, "kernel_shape", [])) / _POOLED
        return 0.0


def _rate(fan_in: int, groups: int) -> float:
    if groups == 1:
        return _DENSE if fan_in >= 16 else _SHALLOW
    if fan_in == 1:
        return _DENSE
    return _GROUPED if fan_in >= 16 else _NARROW


def _moved(taken: Shape, patch: Shape) -> float:
    """Cropping and pasting: gathers and scatters, both transposed for convolutions; a scatter takes as long as two."""
    return 12 * _NODE + (4 * _bytes(taken) + 6 * _bytes(patch)) / _MOVED


def _bytes(shape: Shape) -> int:
    return _FLOAT * math.prod(shape)


def _is_fused(node: onnx.NodeProto) -> bool:
    """Whether the node is computed with the one before it."""
    return node.op_type in _FUSED


# A smaller gain is not worth a graph that is harder to read, and the expectation may be wrong by a few hundredths.
MIN_SPEED_UP = 1.05


@dataclass(frozen=True)
class Plan:
    """Stages from the image on, after which the network runs on whole maps, and the expected ``speed_up``."""

    stages: tuple[Stage, ...]
    speed_up: float


def cheapest_plan(network: Network, windows: Windows) -> Plan:
    """The cheapest plan that is proven exact; one without stages where no crop is smaller than its map."""
    names, costs = _candidates(network), CostModel(network)
    cheapest: dict[int, tuple[float, tuple[Stage, ...]]] = {0: (0.0, ())}
    for i, j, stage in possible_stages(network, names, changed_patches(network, windows)):
        if i not in cheapest:
            continue
        before, path = cheapest[i]
        cost = before + costs.stage(stage)
        if j not in cheapest or cost < cheapest[j][0]:
            cheapest[j] = (cost, (*path, stage))
    whole = costs.whole()
    plans = [Plan(path, whole / (cost + costs.rest(names[i]))) for i, (cost, path) in cheapest.items() if i > 0]
    return max(plans, key=lambda plan: plan.speed_up, default=Plan((), 1.0))


def _candidates(network: Network) -> list[str]:
    """The cuts, without those before a fused activation: keeping the activation's output costs nothing more."""
    readers: dict[str, list[bool]] = {}
    for step in network.steps:
        for name in step.inputs:
            readers.setdefault(name, []).append(_is_fused(step.node))
    return [name for name in find_cuts(network) if name == network.entry or readers.get(name) != [True]]
