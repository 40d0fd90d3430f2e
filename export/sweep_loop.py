"""A full occlusion sweep as one graph: a loop over the windows, whose body is the exported graph of a chunk of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convlens.explain.sweeps.windows import Windows
from convlens.runtime.graph_contract import LOG_SUMS, SCORES

TOPS, LEFTS = "top_B", "left_B"


def chunk_size(windows: Windows, batch: int) -> int:
    """Windows per iteration: at most ``batch``, spread evenly so that the last iteration is nearly full."""
    return math.ceil(len(windows) / math.ceil(len(windows) / batch))


def loop_over_windows(
    chunk: onnx.ModelProto,
    windows: Windows,
    size: int,
    *,
    before: Sequence[onnx.NodeProto] = (),
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """The graph of all windows, made from that of a chunk of ``size`` windows.

    ``chunk`` takes image, target, fill and the corners ``top_B``, ``left_B``, and returns two values for each window;
    the result takes image, target and fill and returns two grids (R, Q). ``before`` are nodes that run once, before the
    loop, and whose outputs the chunk may use; ``constants`` are theirs.
    """
    turns = math.ceil(len(windows) / size)
    graph = helper.make_graph(
        [*before, _loop(chunk.graph, size), *_grid(SCORES), *_grid(LOG_SUMS)],
        "occlusion",
        list(chunk.graph.input)[:3],
        [_value(name, TensorProto.FLOAT, [len(windows.tops), len(windows.lefts)]) for name in (SCORES, LOG_SUMS)],
        initializer=[*_tables(windows, turns, size), *constants],
    )
    return helper.make_model(
        graph, opset_imports=chunk.opset_import, ir_version=chunk.ir_version, producer_name="convlens"
    )


def _loop(chunk: onnx.GraphProto, size: int) -> onnx.NodeProto:
    # The weights belong to the body, where ONNX Runtime finds them constant and can lay them out for its kernels.
    corners = [helper.make_node("Gather", [f"all_{name}", "turn"], [name], axis=0) for name in (TOPS, LEFTS)]
    go_on = helper.make_node("Identity", ["more_in"], ["more_out"])
    body = helper.make_graph(
        [*corners, *chunk.node, go_on],
        "chunk",
        [_value("turn", TensorProto.INT64, []), _value("more_in", TensorProto.BOOL, [])],
        [_value("more_out", TensorProto.BOOL, []), *chunk.output],
        initializer=chunk.initializer,
        value_info=chunk.value_info,
    )
    return helper.make_node("Loop", ["turns", ""], [f"{name}_all" for name in (SCORES, LOG_SUMS)], body=body)


def _grid(name: str) -> Sequence[onnx.NodeProto]:
    """The values of all iterations as a grid, without those that only fill up the last iteration."""
    return (
        helper.make_node("Reshape", [f"{name}_all", "flat"], [f"{name}_flat"]),
        helper.make_node("Slice", [f"{name}_flat", "first", "count"], [f"{name}_kept"]),
        helper.make_node("Reshape", [f"{name}_kept", "grid"], [name]),
    )


def _tables(windows: Windows, turns: int, size: int) -> Sequence[onnx.TensorProto]:
    corners = np.resize(np.array(windows.corners, np.int64), (turns * size, 2))  # filled up from the first window on
    values = {
        f"all_{TOPS}": corners[:, 0].reshape(turns, size),
        f"all_{LEFTS}": corners[:, 1].reshape(turns, size),
        "turns": np.array(turns),
        "flat": np.array([-1]),
        "first": np.array([0]),
        "count": np.array([len(windows)]),
        "grid": np.array([len(windows.tops), len(windows.lefts)]),
    }
    return [numpy_helper.from_array(value, name) for name, value in values.items()]


def _value(name: str, dtype: int, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)
