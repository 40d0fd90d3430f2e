"""Exports a graph: traced, written as a draft, compared with torch, and renamed to its path when it agrees."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx

import convlens
from convlens.errors import ConvLensError, ModelError
from convlens.models import Classifier
from convlens.runtime.graph_contract import CAM, ElementType, GraphContract, Kind, Port, Strategy, labels_sha256
from convlens.runtime.onnx_runtime import OnnxRuntime
from convlens.types import ModelSpec, Step, no_op
from export.options import HALF_TOLERANCE, OPSET, TOLERANCE, ExportOptions, require_exportable, resize_spec
from export.tracing import TracedGraph, trace
from export.verification import Deviation, deviations, reference

_TYPES: dict[int, ElementType] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.UINT8: "uint8",
}
OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it agrees.

    ``speed_up`` is what ``strategy="incremental"`` is expected to give over a full sweep; ``note`` says why the graph
    is a full sweep all the same.
    """

    path: Path
    contract: GraphContract
    deviations: tuple[Deviation, ...]
    seconds: float
    speed_up: float = 1.0

    @property
    def note(self) -> str:
        return self.contract.sweep.note if self.contract.sweep else ""

    @property
    def worst(self) -> Deviation:
        return max(self.deviations, key=lambda deviation: deviation.relative)


def export(
    classifier: Classifier,
    kind: Kind,
    path: Path | str,
    *,
    layers: Sequence[str] = (),
    window: int = 32,
    stride: int = 16,
    batch: int = 8,
    opset: int = OPSET,
    dynamic_batch: bool = True,
    input_size: int | tuple[int, int] | None = None,
    half: bool = False,
    preprocessing: bool = False,
    tolerance: float | None = None,
    strategy: Strategy = "full",
    on_step: OnStep = no_op,
) -> ExportReport:
    """Write a graph of one kind: scores, features (of ``layers``), embedding, occlusion, one of the gradient
    explanations saliency, guided_backprop and deconvnet, or cam: the maps of the one layer in ``layers`` (default: the
    model's ``gradcam_layer``) and their gradient. Takes about half a minute; ``on_step`` gets each stage as it begins,
    and "written" at the end.

    ``window`` and ``stride`` are in pixels and fixed in an occlusion graph, which computes ``batch`` windows at a time.
    In other graphs ``batch`` matters only without ``dynamic_batch``, or where a network's gradient cannot be traced for
    a dynamic batch: then it is the graph's batch size. ``input_size`` is the side of the images in pixels, or height
    and width (default: the model's). ``half`` stores weights as float16 (not in gradients). With ``preprocessing`` the
    graph takes uint8 RGB; gradients are still by the normalised image. ``tolerance`` bounds max |torch - onnx| / max
    |torch| (default 1e-4, with ``half`` 5e-2); for gradients see ``verification``.

    ``strategy="incremental"`` makes an occlusion graph that recomputes for each window only what it changes, with the
    same scores (docs/occlusion.md, also on a patent); where that is not expected to be faster it writes a full sweep,
    and the report's ``note`` and the contract say so.

    A graph that disagrees is kept beside ``path`` as ``NAME.draft.onnx``, and ModelError gives the numbers; any other
    failure leaves nothing. Either way a file already at ``path`` is untouched. Raises RequestError for options that
    cannot be honoured, UnsupportedModelError for a network that torch's exporter cannot export.
    """
    started, path = time.perf_counter(), Path(path)
    allowed = tolerance if tolerance is not None else HALF_TOLERANCE if half else TOLERANCE
    layers = tuple(layers) or ((classifier.spec.gradcam_layer,) if kind == CAM else ())
    options = ExportOptions(
        kind, layers, window, stride, batch, opset, dynamic_batch, half, preprocessing, allowed, strategy
    )
    require_exportable(options, classifier, path)
    spec = resize_spec(classifier.spec, input_size)
    on_step(Step("tracing"))
    traced = trace(classifier, spec, options)
    contract = _contract(traced, spec, options)
    onnx.helper.set_model_props(traced.proto, contract.metadata())
    draft = _write_draft(traced.proto, path)
    on_step(Step(f"comparing with torch {reference(contract)}"))
    result = _verify(draft, path, classifier, spec, allowed)
    on_step(Step("written"))
    return ExportReport(path, contract, result, time.perf_counter() - started, traced.speed_up)


def _contract(traced: TracedGraph, spec: ModelSpec, options: ExportOptions) -> GraphContract:
    embedding = (spec.embedding_layer,) if options.kind == "embedding" else ()
    return GraphContract(
        kind=options.kind,
        model=spec.name,
        weights_sha256=spec.weights_sha256,
        labels_sha256=labels_sha256(spec.labels),
        classes=spec.classes,
        crop=spec.crop,
        resize=spec.resize,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        layers=options.layers or embedding,
        inputs=tuple(_port(value) for value in traced.proto.graph.input),
        outputs=tuple(_port(value) for value in traced.proto.graph.output),
        precision="half" if options.half else "float32",
        preprocessing=options.preprocessing,
        tolerance=options.tolerance,
        versions=_versions(),
        sweep=traced.sweep,
        crop_mode=spec.crop_mode,
        crop_width=spec.crop_width,
        resize_width=spec.resize_width,
    )


def _port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
    return Port(value.name, shape, _TYPES[kind.elem_type])


def _versions() -> dict[str, str]:
    names = ("torch", "onnx", "onnxscript")
    return {"convlens": convlens.__version__} | {name: version(name) for name in names}


def _write_draft(proto: onnx.ModelProto, path: Path) -> Path:
    draft = path.with_name(f"{path.stem}.draft.onnx")
    try:
        draft.write_bytes(proto.SerializeToString())
    except OSError as error:
        draft.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise ConvLensError(f"{draft} cannot be written: {reason}; choose another folder or make room") from error
    return draft


def _verify(
    draft: Path, path: Path, classifier: Classifier, spec: ModelSpec, tolerance: float
) -> tuple[Deviation, ...]:
    """Rename a draft that agrees, keep one that disagrees and raise, remove one that cannot be compared."""
    compared = False
    try:
        result = deviations(OnnxRuntime(draft, providers="cpu"), classifier, spec)
        compared = True
        _require_agreement(result, tolerance, draft)
        draft.replace(path)
    finally:
        if not compared:
            draft.unlink(missing_ok=True)
    return result


def _require_agreement(result: Sequence[Deviation], tolerance: float, draft: Path) -> None:
    # negated, so that NaN disagrees too
    wrong = [deviation for deviation in result if not deviation.relative <= tolerance]
    if wrong:
        numbers = "; ".join(f"{part.output} off by {part.relative:.2e} at batch {part.batch}" for part in wrong[:5])
        raise ModelError(
            f"the graph disagrees with torch beyond {tolerance:g}: {numbers}; the draft is kept at {draft}, "
            "and no graph was written"
        )
