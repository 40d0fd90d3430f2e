"""Builds the occlusion graph that recomputes for each window what it changes; or a full sweep, and says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import onnx
from onnx import helper

from convlens.explain.sweeps.windows import Windows
from convlens.runtime.graph_contract import Strategy
from export.incremental.emit import NodeBuilder, emit_whole_image, emit_windows, outer_name
from export.incremental.network import read_network
from export.incremental.planner import MIN_SPEED_UP, Plan, cheapest_plan
from export.options import MAX_BYTES
from export.sweep_loop import loop_over_windows


@dataclass(frozen=True)
class Sweep:
    """A graph of all windows.

    ``speed_up`` is what recomputing less is expected to give over a full sweep, ``note`` why the graph is a full sweep.
    """

    proto: onnx.ModelProto
    strategy: Strategy
    note: str
    speed_up: float


def incremental_sweep(chunk: onnx.ModelProto, windows: Windows, size: int) -> Sweep:
    """The sweep of ``chunk``, a graph of the scores of ``size`` windows, such as ``loop_over_windows`` takes."""
    network = read_network(chunk)
    plan = cheapest_plan(network, windows) if network is not None else Plan((), 1.0)
    if network is None or not plan.stages or plan.speed_up < MIN_SPEED_UP:
        return Sweep(loop_over_windows(chunk, windows, size), "full", _reason(plan), plan.speed_up)
    first, body = emit_whole_image(network, plan.stages), emit_windows(network, plan.stages, windows)
    if _weight(chunk, first.nodes, outer_name) + _weight(chunk, body.nodes) > MAX_BYTES:
        reason = "the weights of the layers that are recomputed would be there twice, and one file holds 2 GiB"
        return Sweep(loop_over_windows(chunk, windows, size), "full", f"a full sweep: {reason}", 1.0)
    return Sweep(_assembled(chunk, first, body, windows, size), "incremental", "", plan.speed_up)


def _reason(plan: Plan) -> str:
    if not plan.stages:
        return "a full sweep: no part of this network can be recomputed in crops that are smaller than its maps"
    return (
        f"a full sweep: recomputing only what a window changes is expected to be {plan.speed_up:.2f} times as fast "
        f"with this network and these windows, and is used from {MIN_SPEED_UP} times on"
    )


def _assembled(
    chunk: onnx.ModelProto, first: NodeBuilder, body: NodeBuilder, windows: Windows, size: int
) -> onnx.ModelProto:
    # The loop's body has its own copy of all weights, also of layers that run before it: ONNX Runtime lays weights out
    # for its kernels only where they are constants of the body, which was a quarter faster.
    graph = helper.make_graph(
        body.nodes,
        "chunk",
        list(chunk.graph.input),
        list(chunk.graph.output),
        initializer=[*_used(chunk, body.nodes), *body.constants],
    )
    inner = helper.make_model(graph, opset_imports=chunk.opset_import, ir_version=chunk.ir_version)
    before = [*_used(chunk, first.nodes, outer_name), *first.constants]
    return loop_over_windows(inner, windows, size, before=first.nodes, constants=before)


def _weight(chunk: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], named: Callable[[str], str] = str) -> int:
    """Bytes of the chunk's constants that the nodes read."""
    inputs = {name for node in nodes for name in node.input}
    return sum(len(tensor.raw_data) for tensor in chunk.graph.initializer if named(tensor.name) in inputs)


def _used(
    chunk: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], named: Callable[[str], str] = str
) -> Iterator[onnx.TensorProto]:
    """The chunk's constants that the nodes read, under the names that they read them by."""
    inputs = {name for node in nodes for name in node.input}
    for tensor in chunk.graph.initializer:
        if named(tensor.name) in inputs:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = named(tensor.name)
            yield copy
