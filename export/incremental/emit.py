"""ONNX nodes under way, and index arrays for blocks of positions that lie elsewhere for each window.

A plan as ONNX nodes: what is computed once for the picture, and what is computed for each chunk of windows.

Maps are kept channels last, one row of channels a position: crops are then rows looked up by an index, pastes are rows
scattered, and ONNX Runtime takes the transpositions into the reordering that its convolutions want anyway.
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
class Nodes:
    """Nodes and constants under way; the names of new values begin with ``prefix``."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def __call__(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node of one output, whose name is returned."""
        output = name or f"{self.prefix}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, value: np.ndarray | Sequence[int] | int) -> str:
        name = f"{self.prefix}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def again(self, node: onnx.NodeProto, renamed: dict[str, str]) -> onnx.NodeProto:
        """A copy of a node that reads other values."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        self.nodes.append(copy)
        return copy


@dataclass(frozen=True)
class Block:
    """Rows and columns of a map: where they start for each row and column of the grid of windows, and how many."""

    starts: tuple[Ints, Ints]
    sizes: tuple[int, int]


class LookUp:
    """Index arrays (B, rows, columns) for the B windows of a chunk."""

    def __init__(self, made: Nodes, count: int, windows: Windows) -> None:
        self.count, self._made = count, made
        self._places = [_place(made, TOPS, windows.tops), _place(made, LEFTS, windows.lefts)]

    def positions(self, block: Block, width: int, *, apart: int = 0) -> str:
        """Of the block in maps of that width, counted row by row; the maps of two windows lie ``apart``."""
        row_RN, column_QN = (
            start[:, None] + np.arange(size) for start, size in zip(block.starts, block.sizes, strict=True)
        )
        found = self._made("Add", self._table(0, row_RN * width), self._table(1, column_QN))
        if apart == 0:
            return found
        return self._made("Add", found, self._made.constant(np.arange(self.count).reshape(-1, 1, 1) * apart))

    def inside(self, block: Block, within: Block) -> str:
        """True where a position of the block ``within`` lies in ``block``."""
        found = []
        for axis in (0, 1):
            first_R = block.starts[axis] - within.starts[axis]
            place_N = np.arange(within.sizes[axis])
            found.append((place_N >= first_R[:, None]) & (place_N < first_R[:, None] + block.sizes[axis]))
        return self._made("And", self._table(0, found[0]), self._table(1, found[1]))

    def _table(self, axis: int, value_RN: np.ndarray) -> str:
        """The windows' lines of a table that has one for each row, or column, of the grid."""
        shape = (len(value_RN), -1, 1) if axis == 0 else (len(value_RN), 1, value_RN.shape[1])
        return self._made("Gather", self._made.constant(value_RN.reshape(shape)), self._places[axis], axis=0)


def _place(made: Nodes, corner: str, start_R: Ints) -> str:
    """Which row, or column, of the grid each corner stands for."""
    place_of = np.zeros(int(start_R[-1]) + 1, np.int64)
    place_of[start_R] = np.arange(len(start_R))
    return made("Gather", made.constant(place_of), corner, axis=0)


_TO_ROWS, _TO_MAPS = [0, 2, 3, 1], [0, 3, 1, 2]


def once(network: Network, stages: Sequence[Stage]) -> Nodes:
    """The picture's own maps up to the last cut, each cut's as rows of channels.

    Behind the picture's rows is one more: the fill. Weights are read under names of their own.
    """
    made, last = Nodes("whole"), stages[-1].target
    renamed = {name: own_name(name) for name in network.constants}
    for node in network.before:
        made.again(node, renamed)
    renamed[network.entry] = network.picture
    for step in _until(network, last):
        made.again(step.node, renamed).output[0] = renamed[step.output] = own_name(step.output)
    for one in stages:
        rows = _rows(made, network, one.source, renamed[one.source], _pads(one))
        if one.source == network.entry:
            channels = network.shapes[network.entry][1]
            rows = made("Concat", rows, made("Expand", FILL, made.constant([1, channels])), axis=0)
        made("Identity", rows, name=f"rows/{one.source}")
    made("Identity", _rows(made, network, last, renamed[last], [0] * 8), name=f"rows/{last}")
    return made


def own_name(name: str) -> str:
    """Of what the loop's body has under ``name``: ONNX wants no name twice, in no subgraph."""
    return f"whole/{name}"


def _until(network: Network, target: str) -> Iterator[Step]:
    for step in network.steps:
        yield step
        if step.output == target:
            return


def _pads(one: Stage) -> list[int]:
    rows, columns = one.crops
    return [0, rows.before, columns.before, 0, 0, rows.after, columns.after, 0]


def _rows(made: Nodes, network: Network, name: str, whole: str, pads: Sequence[int]) -> str:
    rows = made("Transpose", whole, perm=_TO_ROWS)
    if any(pads):
        rows = made("Pad", rows, made.constant(pads))
    return made("Reshape", rows, made.constant([-1, network.shapes[name][1]]))


def each(network: Network, stages: Sequence[Stage], windows: Windows) -> Nodes:
    """The same for a chunk of windows, given by their corners: crop by crop, then all the rest on whole maps."""
    made = Nodes("window")
    look_up = LookUp(made, network.shapes[network.entry][0], windows)
    updates = ""
    for one in stages:
        if one.source == network.entry:
            crop = _hidden(made, look_up, network, one)
        else:
            rows, columns = one.crops
            crop = made("Gather", f"rows/{one.source}", _taken(look_up, network, one), axis=0)
            shape = (rows.taken, columns.taken, network.shapes[one.source][1])
            crop = _pasted(made, look_up, crop, shape, _pasted_into(one), updates)
        _run(made, one, crop)
        updates = _updates(made, look_up, network, one)
    _rest(made, look_up, network, stages[-1], updates)
    return made


def _crop(one: Stage) -> Block:
    """In the source's padded map."""
    rows, columns = one.crops
    return Block((rows.from_R, columns.from_R), (rows.taken, columns.taken))


def _pasted_into(one: Stage) -> Block:
    """What is taken up, in the crop."""
    rows, columns = (
        patch.start_R + crop.before - crop.from_R for patch, crop in zip(one.taken_up, one.crops, strict=True)
    )
    return Block((rows, columns), (one.taken_up[0].length, one.taken_up[1].length))


def _taken(look_up: LookUp, network: Network, one: Stage) -> str:
    return look_up.positions(_crop(one), _padded(network, one)[1])


def _padded(network: Network, one: Stage) -> tuple[int, int]:
    height, width = (network.size(one.source, axis) + one.crops[axis].before + one.crops[axis].after for axis in (0, 1))
    return height, width


def _hidden(made: Nodes, look_up: LookUp, network: Network, one: Stage) -> str:
    """The picture's crop, with the fill looked up for all positions of the window; zeros around the picture stay."""
    height, width = _padded(network, one)
    window = _pasted_into(one)
    zero_R, zero_Q = (np.zeros_like(start) for start in window.starts)
    inside = look_up.inside(window, Block((zero_R, zero_Q), _crop(one).sizes))
    index = made("Where", inside, made.constant(height * width), _taken(look_up, network, one))
    return made("Gather", f"rows/{one.source}", index, axis=0)


def _pasted(made: Nodes, look_up: LookUp, crop: str, shape: tuple[int, int, int], into: Block, updates: str) -> str:
    """The crop (B, rows, columns, C) with the last stage's patches in it."""
    height, width, channels = shape
    index = look_up.positions(into, width, apart=height * width)
    flat = made("Reshape", crop, made.constant([look_up.count * height * width, channels]))
    flat = made("ScatterND", flat, made("Unsqueeze", index, made.constant([3])), updates)
    return made("Reshape", flat, made.constant([look_up.count, height, width, channels]))


def _run(made: Nodes, one: Stage, crop: str) -> None:
    """The stage's own nodes, on the crop."""
    views: dict[tuple[int, ...], str] = {}
    for step in one.steps:
        renamed = {}
        if one.source in step.inputs:
            part = _part(one, step)
            if part not in views:
                views[part] = made("Transpose", _sliced(made, one, crop, part), perm=_TO_MAPS)
            renamed[one.source] = views[part]
        node = made.again(step.node, renamed)
        if step.output in one.head.bare:
            _bare(node)


def _part(one: Stage, step: Step) -> tuple[int, ...]:
    """What of the crop the step reads: (top, left, bottom, right)."""
    if one.head.leading:
        return (0, 0, *_crop(one).sizes)
    starts, stops = [], []
    for crop, reach in zip(one.crops, step.reaches, strict=True):
        before, after = (reach.before, reach.after) if step.output in one.head.bare else (0, 0)
        starts.append(crop.before - before)
        stops.append(crop.before + crop.core + after)
    return (*starts, *stops)


def _sliced(made: Nodes, one: Stage, crop: str, part: tuple[int, ...]) -> str:
    if part == (0, 0, *_crop(one).sizes):
        return crop
    return made("Slice", crop, made.constant(part[:2]), made.constant(part[2:]), made.constant([1, 2]))


def _bare(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "pads":
            attribute.ints[:] = [0] * len(attribute.ints)


def _updates(made: Nodes, look_up: LookUp, network: Network, one: Stage) -> str:
    """The part of the stage's result that is pasted, (B, rows, columns, C)."""
    result = made("Transpose", one.target, perm=_TO_ROWS)
    height, width = (crop.sizes[one.target] for crop in one.crops)
    lengths = (one.given[0].length, one.given[1].length)
    if lengths == (height, width):
        return result
    flat = made("Reshape", result, made.constant([look_up.count * height * width, network.shapes[one.target][1]]))
    rows, columns = (patch.start_R - crop.to_R for patch, crop in zip(one.given, one.crops, strict=True))
    index = look_up.positions(Block((rows, columns), lengths), width, apart=height * width)
    return made("Gather", flat, index, axis=0)


def _rest(made: Nodes, look_up: LookUp, network: Network, last: Stage, updates: str) -> None:
    """Everything behind the last cut, on whole maps."""
    _, channels, height, width = network.shapes[last.target]
    rows = made("Unsqueeze", f"rows/{last.target}", made.constant([0]))
    copies = made("Expand", rows, made.constant([look_up.count, height * width, channels]))
    rows_of, columns_of = last.given
    into = Block((rows_of.start_R, columns_of.start_R), (rows_of.length, columns_of.length))
    pasted = _pasted(made, look_up, copies, (height, width, channels), into, updates)
    renamed = {last.target: made("Transpose", pasted, perm=_TO_MAPS)}
    done = {step.output for step in _until(network, last.target)}
    for node in (*(step.node for step in network.steps), *network.rest):
        if node.output[0] not in done:
            made.again(node, renamed)
