"""Emits a plan as ONNX nodes: what is computed once for the image, and what for each chunk of windows.

Maps are kept channels last, one row of channels per position: a crop then gathers rows by an index, a paste scatters
rows, and ONNX Runtime merges the transpositions into the reordering that its convolutions need anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from convlens.explain.sweeps.windows import Windows
from convlens.runtime.graph_contract import FILL
from convlens.types import Ints
from export.incremental.network import Network, Step
from export.incremental.stages import Stage
from export.sweep_loop import LEFTS, TOPS


@dataclass
class NodeBuilder:
    """Collects nodes and constants; the names of new values begin with ``prefix``."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def __call__(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node of one output and return the output's name."""
        output = name or f"{self.prefix}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, value: np.ndarray | Sequence[int] | int) -> str:
        name = f"{self.prefix}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def copy(self, node: onnx.NodeProto, renamed: dict[str, str]) -> onnx.NodeProto:
        """Add a copy of a node whose inputs are renamed."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        self.nodes.append(copy)
        return copy


@dataclass(frozen=True)
class Block:
    """A block of a map for each window: the first row and column, by row and column of the grid, and the size."""

    starts: tuple[Ints, Ints]
    sizes: tuple[int, int]


class WindowIndices:
    """Index arrays (B, rows, columns) for the B windows of a chunk."""

    def __init__(self, nodes: NodeBuilder, count: int, windows: Windows) -> None:
        self.count, self._nodes = count, nodes
        self._places = [_place(nodes, TOPS, windows.tops), _place(nodes, LEFTS, windows.lefts)]

    def positions(self, block: Block, width: int, *, apart: int = 0) -> str:
        """Indices of the block's positions in maps of that width, row by row; those of two windows lie ``apart``."""
        row_RN, column_QN = (
            start[:, None] + np.arange(size) for start, size in zip(block.starts, block.sizes, strict=True)
        )
        index = self._nodes("Add", self._table(0, row_RN * width), self._table(1, column_QN))
        if apart == 0:
            return index
        return self._nodes("Add", index, self._nodes.constant(np.arange(self.count).reshape(-1, 1, 1) * apart))

    def inside(self, block: Block, within: Block) -> str:
        """True where a position of the block ``within`` lies in ``block``."""
        masks = []
        for axis in (0, 1):
            first_R = block.starts[axis] - within.starts[axis]
            place_N = np.arange(within.sizes[axis])
            masks.append((place_N >= first_R[:, None]) & (place_N < first_R[:, None] + block.sizes[axis]))
        return self._nodes("And", self._table(0, masks[0]), self._table(1, masks[1]))

    def _table(self, axis: int, value_RN: np.ndarray) -> str:
        """The entries, for the chunk's windows, of a table by row or column of the grid."""
        shape = (len(value_RN), -1, 1) if axis == 0 else (len(value_RN), 1, value_RN.shape[1])
        return self._nodes("Gather", self._nodes.constant(value_RN.reshape(shape)), self._places[axis], axis=0)


def _place(nodes: NodeBuilder, corner: str, start_R: Ints) -> str:
    """The row or column of the grid that each corner belongs to."""
    place_of = np.zeros(int(start_R[-1]) + 1, np.int64)
    place_of[start_R] = np.arange(len(start_R))
    return nodes("Gather", nodes.constant(place_of), corner, axis=0)


_TO_ROWS, _TO_MAPS = [0, 2, 3, 1], [0, 3, 1, 2]


def emit_whole_image(network: Network, stages: Sequence[Stage]) -> NodeBuilder:
    """The maps of the unoccluded image up to the last cut, each cut's as rows of channels.

    The image's rows are followed by one more, the fill. Weights are read under names of their own.
    """
    nodes, last = NodeBuilder("whole"), stages[-1].target
    renamed = {name: outer_name(name) for name in network.constants}
    for node in network.before:
        nodes.copy(node, renamed)
    renamed[network.entry] = network.picture
    for step in _until(network, last):
        nodes.copy(step.node, renamed).output[0] = renamed[step.output] = outer_name(step.output)
    for stage in stages:
        rows = _rows(nodes, network, stage.source, renamed[stage.source], _pads(stage))
        if stage.source == network.entry:
            channels = network.shapes[network.entry][1]
            rows = nodes("Concat", rows, nodes("Expand", FILL, nodes.constant([1, channels])), axis=0)
        nodes("Identity", rows, name=f"rows/{stage.source}")
    nodes("Identity", _rows(nodes, network, last, renamed[last], [0] * 8), name=f"rows/{last}")
    return nodes


def outer_name(name: str) -> str:
    """The name outside the loop of what its body calls ``name``: ONNX allows no name twice, not even in a subgraph."""
    return f"whole/{name}"


def _until(network: Network, target: str) -> Iterator[Step]:
    for step in network.steps:
        yield step
        if step.output == target:
            return


def _pads(stage: Stage) -> list[int]:
    rows, columns = stage.crops
    return [0, rows.before, columns.before, 0, 0, rows.after, columns.after, 0]


def _rows(nodes: NodeBuilder, network: Network, name: str, whole: str, pads: Sequence[int]) -> str:
    rows = nodes("Transpose", whole, perm=_TO_ROWS)
    if any(pads):
        rows = nodes("Pad", rows, nodes.constant(pads))
    return nodes("Reshape", rows, nodes.constant([-1, network.shapes[name][1]]))


def emit_windows(network: Network, stages: Sequence[Stage], windows: Windows) -> NodeBuilder:
    """The scores of a chunk of windows, given by their corners: stage by stage on crops, then on whole maps."""
    nodes = NodeBuilder("window")
    indices = WindowIndices(nodes, network.shapes[network.entry][0], windows)
    updates = ""
    for stage in stages:
        if stage.source == network.entry:
            crop = _hidden(nodes, indices, network, stage)
        else:
            rows, columns = stage.crops
            crop = nodes("Gather", f"rows/{stage.source}", _taken(indices, network, stage), axis=0)
            shape = (rows.taken, columns.taken, network.shapes[stage.source][1])
            crop = _pasted(nodes, indices, crop, shape, _pasted_into(stage), updates)
        _run(nodes, stage, crop)
        updates = _updates(nodes, indices, network, stage)
    _rest(nodes, indices, network, stages[-1], updates)
    return nodes


def _crop(stage: Stage) -> Block:
    """The crop, in the source's padded map."""
    rows, columns = stage.crops
    return Block((rows.from_R, columns.from_R), (rows.taken, columns.taken))


def _pasted_into(stage: Stage) -> Block:
    """Where the source's patch lies in the crop."""
    rows, columns = (
        patch.start_R + crop.before - crop.from_R for patch, crop in zip(stage.input_patches, stage.crops, strict=True)
    )
    return Block((rows, columns), (stage.input_patches[0].length, stage.input_patches[1].length))


def _taken(indices: WindowIndices, network: Network, stage: Stage) -> str:
    return indices.positions(_crop(stage), _padded(network, stage)[1])


def _padded(network: Network, stage: Stage) -> tuple[int, int]:
    height, width = (
        network.size(stage.source, axis) + stage.crops[axis].before + stage.crops[axis].after for axis in (0, 1)
    )
    return height, width


def _hidden(nodes: NodeBuilder, indices: WindowIndices, network: Network, stage: Stage) -> str:
    """The image's crop, with the row of the fill at all positions of the window; zeros around the image stay."""
    height, width = _padded(network, stage)
    window = _pasted_into(stage)
    zero_R, zero_Q = (np.zeros_like(start) for start in window.starts)
    inside = indices.inside(window, Block((zero_R, zero_Q), _crop(stage).sizes))
    index = nodes("Where", inside, nodes.constant(height * width), _taken(indices, network, stage))
    return nodes("Gather", f"rows/{stage.source}", index, axis=0)


def _pasted(
    nodes: NodeBuilder, indices: WindowIndices, crop: str, shape: tuple[int, int, int], into: Block, updates: str
) -> str:
    """The crop (B, rows, columns, C) with the previous stage's patches pasted in."""
    height, width, channels = shape
    index = indices.positions(into, width, apart=height * width)
    flat = nodes("Reshape", crop, nodes.constant([indices.count * height * width, channels]))
    flat = nodes("ScatterND", flat, nodes("Unsqueeze", index, nodes.constant([3])), updates)
    return nodes("Reshape", flat, nodes.constant([indices.count, height, width, channels]))


def _run(nodes: NodeBuilder, stage: Stage, crop: str) -> None:
    """The stage's layers, on the crop."""
    views: dict[tuple[int, ...], str] = {}
    for step in stage.steps:
        renamed = {}
        if stage.source in step.inputs:
            part = _part(stage, step)
            if part not in views:
                views[part] = nodes("Transpose", _sliced(nodes, stage, crop, part), perm=_TO_MAPS)
            renamed[stage.source] = views[part]
        node = nodes.copy(step.node, renamed)
        if step.output in stage.head.bare:
            _remove_padding(node)


def _part(stage: Stage, step: Step) -> tuple[int, ...]:
    """The part of the crop that the step reads: (top, left, bottom, right)."""
    if stage.head.leading:
        return (0, 0, *_crop(stage).sizes)
    starts, stops = [], []
    for crop, reach in zip(stage.crops, step.reaches, strict=True):
        before, after = (reach.before, reach.after) if step.output in stage.head.bare else (0, 0)
        starts.append(crop.before - before)
        stops.append(crop.before + crop.core + after)
    return (*starts, *stops)


def _sliced(nodes: NodeBuilder, stage: Stage, crop: str, part: tuple[int, ...]) -> str:
    if part == (0, 0, *_crop(stage).sizes):
        return crop
    return nodes("Slice", crop, nodes.constant(part[:2]), nodes.constant(part[2:]), nodes.constant([1, 2]))


def _remove_padding(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "pads":
            attribute.ints[:] = [0] * len(attribute.ints)


def _updates(nodes: NodeBuilder, indices: WindowIndices, network: Network, stage: Stage) -> str:
    """The patch of the stage's result (B, rows, columns, C), which the next one pastes."""
    result = nodes("Transpose", stage.target, perm=_TO_ROWS)
    height, width = (crop.sizes[stage.target] for crop in stage.crops)
    lengths = (stage.output_patches[0].length, stage.output_patches[1].length)
    if lengths == (height, width):
        return result
    flat = nodes("Reshape", result, nodes.constant([indices.count * height * width, network.shapes[stage.target][1]]))
    rows, columns = (patch.start_R - crop.to_R for patch, crop in zip(stage.output_patches, stage.crops, strict=True))
    index = indices.positions(Block((rows, columns), lengths), width, apart=height * width)
    return nodes("Gather", flat, index, axis=0)


def _rest(nodes: NodeBuilder, indices: WindowIndices, network: Network, last: Stage, updates: str) -> None:
    """Everything after the last cut, on whole maps."""
    _, channels, height, width = network.shapes[last.target]
    rows = nodes("Unsqueeze", f"rows/{last.target}", nodes.constant([0]))
    copies = nodes("Expand", rows, nodes.constant([indices.count, height * width, channels]))
    rows_of, columns_of = last.output_patches
    into = Block((rows_of.start_R, columns_of.start_R), (rows_of.length, columns_of.length))
    pasted = _pasted(nodes, indices, copies, (height, width, channels), into, updates)
    renamed = {last.target: nodes("Transpose", pasted, perm=_TO_MAPS)}
    done = {step.output for step in _until(network, last.target)}
    for node in (*(step.node for step in network.steps), *network.rest):
        if node.output[0] not in done:
            nodes.copy(node, renamed)
