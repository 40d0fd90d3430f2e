"""ONNX nodes under way, and index arrays for blocks of positions that lie elsewhere for each window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from convlens.explain.windows import Windows
from convlens.types import Ints
from export.sweep import LEFTS, TOPS


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
