"""Traces a network into an ONNX graph, by torch's exporter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import onnx
import torch
from onnx_ir.passes import InvariantError
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError

from convlens.errors import RequestError, UnsupportedModelError
from convlens.explain.sweeps.windows import Windows
from convlens.instrument import copy_of, tapped
from convlens.models import Classifier
from convlens.runtime.graph_contract import (
    CAM,
    EMBEDDING,
    FILL,
    GRADIENT,
    LOG_SUMS,
    LOGITS,
    MAPS,
    MAPS_GRADIENT,
    PICTURE,
    PIXELS,
    SCORES,
    TARGET,
    TARGETS,
    Strategy,
    SweepGeometry,
)
from convlens.runtime.memory import is_out_of_memory
from convlens.types import ModelSpec
from export.gradients.custom_ops import TRANSLATIONS
from export.gradients.tracing import (
    RULES,
    TRACE_ERRORS,
    Gradient,
    MapsGradient,
    has_dynamic_batch,
    pixels_of_maps,
    require_rule,
    unroll,
)
from export.incremental.builder import Sweep, incremental_sweep
from export.options import ExportOptions
from export.sweep_loop import LEFTS, TOPS, chunk_size, loop_over_windows
from export.wrappers import Embedding, Features, OccludedScores, Scores, WithPreprocessing

# What torch's exporter and its optimiser raise for a network that they cannot write.
EXPORT_ERRORS = (OnnxExporterError, InvariantError, *TRACE_ERRORS)
# Not 1, which the exporter would treat as a constant, and none of the batch sizes that the graph is then compared at.
_TRACED_BATCH = 2


@dataclass(frozen=True)
class _Plan:
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    open_batch: bool


@dataclass(frozen=True)
class TracedGraph:
    """A graph without its contract; for a sweep also its windows and the expected speed-up over a full sweep."""

    proto: onnx.ModelProto
    sweep: SweepGeometry | None = None
    speed_up: float = 1.0


def trace(classifier: Classifier, spec: ModelSpec, options: ExportOptions) -> TracedGraph:
    """The graph of that kind. UnsupportedModelError for a network that torch's exporter cannot export."""
    with _plan(classifier, spec, options) as plan:
        proto = _run_exporter(plan, options)
    _strip_metadata(proto)
    if options.kind != "occlusion":
        return TracedGraph(proto)
    windows = Windows(*spec.input_size, options.window, options.stride)
    sweep = _sweep(proto, windows, chunk_size(windows, options.batch), options.strategy)
    geometry = SweepGeometry(options.window, options.stride, options.batch, sweep.strategy, sweep.note)
    return TracedGraph(sweep.proto, geometry, sweep.speed_up)


def _sweep(chunk: onnx.ModelProto, windows: Windows, size: int, strategy: Strategy) -> Sweep:
    if strategy == "incremental":
        return incremental_sweep(chunk, windows, size)
    return Sweep(loop_over_windows(chunk, windows, size), "full", "", 1.0)


@contextmanager
def _plan(classifier: Classifier, spec: ModelSpec, options: ExportOptions) -> Iterator[_Plan]:
    # Only half precision copies the weights; otherwise the user's own module is traced.
    network = copy_of(classifier.module).half() if options.half else classifier.module
    pixels, is_dynamic = _pixels(classifier, spec, options), options.dynamic_batch
    _require_runs(classifier, spec, options)
    if options.kind == "scores":
        yield _Plan(_with_preprocessing(Scores(network), spec, options, classifier), pixels, (LOGITS,), is_dynamic)
    elif options.kind == "features":
        with tapped(network, outputs=options.layers) as tap:
            graph = _with_preprocessing(Features(tap, options.layers), spec, options, classifier)
            yield _Plan(graph, pixels, options.layers, is_dynamic)
    elif options.kind == "embedding":
        with tapped(network, inputs=[spec.embedding_layer]) as tap:
            graph = _with_preprocessing(Embedding(tap, spec.embedding_layer), spec, options, classifier)
            yield _Plan(graph, pixels, (EMBEDDING, LOGITS), is_dynamic)
    elif options.kind == "occlusion":
        graph = _with_preprocessing(OccludedScores(network, options.window), spec, options, classifier)
        yield _Plan(graph, pixels | _sweep_inputs(spec, options, classifier.device), (SCORES, LOG_SUMS), False)
    elif options.kind == CAM:
        (layer,) = options.layers
        module: nn.Module = MapsGradient(network, layer, pixels_of_maps(classifier, spec, layer))
        yield _backward(module, (MAPS, MAPS_GRADIENT, LOGITS), classifier, spec, options)
    else:
        require_rule(classifier, spec, options.kind)
        yield _backward(Gradient(network, RULES[options.kind]), (GRADIENT, LOGITS), classifier, spec, options)


def _backward(
    module: nn.Module, outputs: tuple[str, ...], classifier: Classifier, spec: ModelSpec, options: ExportOptions
) -> _Plan:
    """For a dynamic batch where the network can be traced with one, else for ``options.batch`` images."""
    pixels = _pixels(classifier, spec, options)
    inputs = pixels | {TARGETS: torch.zeros(len(*pixels.values()), dtype=torch.int64, device=classifier.device)}
    graph = _with_preprocessing(module, spec, options, classifier)
    steps = unroll(graph, tuple(inputs.values()), open_batch=options.dynamic_batch)
    if options.dynamic_batch and not has_dynamic_batch(steps):
        return _backward(module, outputs, classifier, spec, replace(options, dynamic_batch=False))
    return _Plan(steps.eval(), inputs, outputs, options.dynamic_batch)


def _require_runs(classifier: Classifier, spec: ModelSpec, options: ExportOptions) -> None:
    """RequestError for a layer that does not run or returns no tensor, which would fail obscurely in the exporter."""
    x_NCHW = torch.zeros(1, spec.channels, *spec.input_size, device=classifier.device)
    layers = options.layers if options.kind == "features" else ()
    with torch.inference_mode(), tapped(classifier.module, outputs=layers) as tap:
        try:
            tap.module(x_NCHW)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise RequestError(
                f"the network fails on pictures of {'×'.join(map(str, spec.input_size))}: {error}", field="input_size"
            ) from error


def _with_preprocessing(graph: nn.Module, spec: ModelSpec, options: ExportOptions, classifier: Classifier) -> nn.Module:
    return (WithPreprocessing(graph, spec, classifier.device) if options.preprocessing else graph).eval()


def _pixels(classifier: Classifier, spec: ModelSpec, options: ExportOptions) -> dict[str, Tensor]:
    count = 1 if options.kind == "occlusion" else _TRACED_BATCH if options.dynamic_batch else options.batch
    if options.preprocessing:
        shape = (count, *spec.input_size, spec.channels)
        return {PICTURE: torch.zeros(shape, dtype=torch.uint8, device=classifier.device)}
    return {PIXELS: torch.zeros(count, spec.channels, *spec.input_size, device=classifier.device)}


def _sweep_inputs(spec: ModelSpec, options: ExportOptions, device: torch.device) -> dict[str, Tensor]:
    windows = Windows(*spec.input_size, options.window, options.stride)
    corner_B = torch.zeros(chunk_size(windows, options.batch), dtype=torch.int64, device=device)
    target, fill = torch.tensor(0, device=device), torch.tensor(0.0, device=device)
    return {TARGET: target, FILL: fill, TOPS: corner_B, LEFTS: corner_B.clone()}


def _run_exporter(plan: _Plan, options: ExportOptions) -> onnx.ModelProto:
    batch = torch.export.Dim("N")
    shapes = tuple({0: batch} for _ in plan.inputs) if plan.open_batch else None
    try:
        with warnings.catch_warnings():
            # it is used: by the first of two inputs, which share it
            warnings.filterwarnings("ignore", r"# The axis name: \w+ will not be used", UserWarning)
            program = torch.onnx.export(
                plan.module,
                tuple(plan.inputs.values()),
                input_names=list(plan.inputs),
                output_names=list(plan.outputs),
                opset_version=options.opset,
                dynamic_shapes=shapes,
                custom_translation_table=TRANSLATIONS,
                dynamo=True,
                verbose=False,
            )
    except EXPORT_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise UnsupportedModelError(f"torch cannot export this network: {_first_line(error)}") from error
    assert program is not None, "torch.onnx.export gives None for the older exporter only"
    _require_known_types(program.model_proto)
    return program.model_proto


def _require_known_types(proto: onnx.ModelProto) -> None:
    """UnsupportedModelError for a network that computes in bfloat16 somewhere inside."""
    if any(value.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16 for value in proto.graph.value_info):
        raise UnsupportedModelError(
            "this network computes in bfloat16 inside, as under torch.autocast, and ONNX Runtime has no such kernels "
            "on a CPU; export it without autocast"
        )


def _strip_metadata(proto: onnx.ModelProto) -> None:
    """Drop what the exporter notes on every node: torch's names, and stack traces with local paths."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    graph = proto.graph
    for values in (graph.input, graph.output, graph.value_info):
        for value in values:
            del value.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    del graph.metadata_props[:], proto.metadata_props[:]
    graph.doc_string = proto.doc_string = ""


def _first_line(error: Exception) -> str:
    # The exporter's messages begin with headings; what went wrong is the innermost cause.
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause).strip().splitlines()[0][:300] if str(cause).strip() else type(cause).__name__
