"""From a network to an ONNX graph, by torch's exporter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError

from convlens.errors import RequestError, UnsupportedModelError
from convlens.explain.windows import Windows
from convlens.instrument import tapped
from convlens.models import Classifier
from convlens.runtime.contract import EMBEDDING, FILL, LOG_SUMS, LOGITS, PICTURE, PIXELS, SCORES, TARGET
from convlens.types import ModelSpec
from export.graphs import Embedding, Features, FromPicture, HiddenScores, Scores
from export.options import Options
from export.sweep import LEFTS, TOPS, chunk_size, looped

# Not 1, which the exporter would take for a constant, and not one of those that the graph is then compared at.
TRACED_BATCH = 2


@dataclass(frozen=True)
class _Plan:
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def trace(classifier: Classifier, spec: ModelSpec, options: Options) -> onnx.ModelProto:
    """The graph of that kind, without its contract. UnsupportedModelError where torch's exporter gives up."""
    with _plan(classifier, spec, options) as plan:
        proto = _exported(plan, options)
    _forget_origin(proto)
    if options.kind != "occlusion":
        return proto
    windows = Windows(spec.crop, spec.crop, options.window, options.stride)
    return looped(proto, windows, chunk_size(windows, options.batch))


@contextmanager
def _plan(classifier: Classifier, spec: ModelSpec, options: Options) -> Iterator[_Plan]:
    # The weights are copied where they change; otherwise the graph is traced on those that there are.
    network = deepcopy(classifier.module).half() if options.half else classifier.module
    pixels = _pixels(classifier, spec, options)
    _require_run(classifier, spec, options)
    if options.kind == "scores":
        yield _Plan(_entered(Scores(network), spec, options, classifier), pixels, (LOGITS,))
    elif options.kind == "features":
        with tapped(network, outputs=options.layers) as tap:
            yield _Plan(_entered(Features(tap, options.layers), spec, options, classifier), pixels, options.layers)
    elif options.kind == "embedding":
        with tapped(network, inputs=[spec.embedding_layer]) as tap:
            graph = Embedding(tap, spec.embedding_layer)
            yield _Plan(_entered(graph, spec, options, classifier), pixels, (EMBEDDING, LOGITS))
    else:
        hidden = HiddenScores(network, options.window)
        yield _Plan(
            _entered(hidden, spec, options, classifier),
            pixels | _sweep_inputs(spec, options, classifier.device),
            (SCORES, LOG_SUMS),
        )


def _require_run(classifier: Classifier, spec: ModelSpec, options: Options) -> None:
    """RequestError for a layer that does not run, or gives no tensor: inside the exporter it would be a riddle."""
    x_NCHW = torch.zeros(1, len(spec.mean), spec.crop, spec.crop, device=classifier.device)
    with torch.inference_mode(), tapped(classifier.module, outputs=options.layers) as tap:
        try:
            tap.module(x_NCHW)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise RequestError(
                f"the network fails on pictures of {spec.crop}×{spec.crop}: {error}", field="input_size"
            ) from error


def _entered(graph: nn.Module, spec: ModelSpec, options: Options, classifier: Classifier) -> nn.Module:
    return (FromPicture(graph, spec, classifier.device) if options.preprocessing else graph).eval()


def _pixels(classifier: Classifier, spec: ModelSpec, options: Options) -> dict[str, Tensor]:
    count = 1 if options.kind == "occlusion" else TRACED_BATCH if options.dynamic_batch else options.batch
    if options.preprocessing:
        shape = (count, spec.crop, spec.crop, len(spec.mean))
        return {PICTURE: torch.zeros(shape, dtype=torch.uint8, device=classifier.device)}
    return {PIXELS: torch.zeros(count, len(spec.mean), spec.crop, spec.crop, device=classifier.device)}


def _sweep_inputs(spec: ModelSpec, options: Options, device: torch.device) -> dict[str, Tensor]:
    windows = Windows(spec.crop, spec.crop, options.window, options.stride)
    corner_B = torch.zeros(chunk_size(windows, options.batch), dtype=torch.int64, device=device)
    target, fill = torch.tensor(0, device=device), torch.tensor(0.0, device=device)
    return {TARGET: target, FILL: fill, TOPS: corner_B, LEFTS: corner_B.clone()}


def _exported(plan: _Plan, options: Options) -> onnx.ModelProto:
    dynamic = options.dynamic_batch and options.kind != "occlusion"
    shapes = ({0: torch.export.Dim("N")},) if dynamic else None
    try:
        program = torch.onnx.export(
            plan.module,
            tuple(plan.inputs.values()),
            input_names=list(plan.inputs),
            output_names=list(plan.outputs),
            opset_version=options.opset,
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    except OnnxExporterError as error:
        raise UnsupportedModelError(f"torch cannot export this network: {_first_line(error)}") from error
    assert program is not None, "torch.onnx.export gives None for the older exporter only"
    return program.model_proto


def _forget_origin(proto: onnx.ModelProto) -> None:
    """Drop what the exporter notes on every node: torch's names, and stack traces with this machine's folders."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:], proto.metadata_props[:]
    proto.graph.doc_string = proto.doc_string = ""


def _first_line(error: Exception) -> str:
    # The exporter's messages begin with headings; what went wrong is the innermost cause.
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause).strip().splitlines()[0][:300] if str(cause).strip() else type(cause).__name__
