"""An occlusion graph that recomputes for each window what it changes; or a full sweep, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import onnx
from onnx import helper

from convlens.explain.sweeps.windows import Windows
from convlens.runtime.graph_contract import Strategy
from export.incremental.emit import Nodes, each, once, own_name
from export.incremental.network import read
from export.incremental.planner import WORTH, Plan, planned
from export.options import MOST_BYTES
from export.sweep_loop import looped


@dataclass(frozen=True)
class Sweep:
    """A graph of all windows. ``speed_up`` is what recomputing less is expected to give over a full sweep, ``note``
    why the graph is a full sweep."""

    proto: onnx.ModelProto
    strategy: Strategy
    note: str
    speed_up: float


def recomputing(chunk: onnx.ModelProto, windows: Windows, size: int) -> Sweep:
    """The sweep made of ``chunk``, a graph of the scores of ``size`` windows, as ``looped`` takes it."""
    network = read(chunk)
    plan = planned(network, windows) if network is not None else Plan((), 1.0)
    if network is None or not plan.stages or plan.speed_up < WORTH:
        return Sweep(looped(chunk, windows, size), "full", _does_not_pay(plan), plan.speed_up)
    first, body = once(network, plan.stages), each(network, plan.stages, windows)
    if _weight(chunk, first.nodes, own_name) + _weight(chunk, body.nodes) > MOST_BYTES:
        reason = "the weights of the layers that are recomputed would be there twice, and one file holds 2 GiB"
        return Sweep(looped(chunk, windows, size), "full", f"a full sweep: {reason}", 1.0)
    return Sweep(_drawn(chunk, first, body, windows, size), "incremental", "", plan.speed_up)


def _does_not_pay(plan: Plan) -> str:
    if not plan.stages:
        return "a full sweep: no part of this network can be recomputed in crops that are smaller than its maps"
    return (
        f"a full sweep: recomputing only what a window changes is expected to be {plan.speed_up:.2f} times as fast "
        f"with this network and these windows, and is used from {WORTH} times on"
    )


def _drawn(chunk: onnx.ModelProto, first: Nodes, body: Nodes, windows: Windows, size: int) -> onnx.ModelProto:
    # The loop's body has weights of its own, also of layers that run before it: only as constants of the body does
    # ONNX Runtime lay them out for its kernels, which was a quarter faster.
    graph = helper.make_graph(
        body.nodes,
        "chunk",
        list(chunk.graph.input),
        list(chunk.graph.output),
        initializer=[*_used(chunk, body.nodes), *body.constants],
    )
    inner = helper.make_model(graph, opset_imports=chunk.opset_import, ir_version=chunk.ir_version)
    before = [*_used(chunk, first.nodes, own_name), *first.constants]
    return looped(inner, windows, size, before=first.nodes, constants=before)


def _weight(chunk: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], named: Callable[[str], str] = str) -> int:
    wanted = {name for node in nodes for name in node.input}
    return sum(len(tensor.raw_data) for tensor in chunk.graph.initializer if named(tensor.name) in wanted)


def _used(
    chunk: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], named: Callable[[str], str] = str
) -> Iterator[onnx.TensorProto]:
    """The chunk's constants that the nodes read, under the names that they read them by."""
    wanted = {name for node in nodes for name in node.input}
    for tensor in chunk.graph.initializer:
        if named(tensor.name) in wanted:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = named(tensor.name)
            yield copy
