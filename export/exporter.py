"""A graph on disk: drafted beside, compared with torch, and named when it agrees."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx

import convlens
from convlens.errors import ConvLensError, ModelError
from convlens.instrument import require_eval
from convlens.models import Classifier
from convlens.runtime.graph_contract import ElementType, GraphContract, Kind, Port, Strategy, labels_sha256
from convlens.runtime.onnx_runtime import OnnxRuntime
from convlens.types import ModelSpec
from export.options import (
    HALF_TOLERANCE,
    OPSET,
    TOLERANCE,
    Options,
    require_kind,
    require_options,
    require_place,
    require_size,
    resized,
)
from export.tracing import Traced, trace
from export.verification import Deviation, deviations

_TYPES: dict[int, ElementType] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.UINT8: "uint8",
}


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it agrees.

    ``speed_up`` is what ``strategy="incremental"`` is expected to give over a full sweep, ``note`` why the graph is one
    all the same.
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
        return max(self.deviations, key=lambda one: one.relative)


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
    input_size: int | None = None,
    half: bool = False,
    preprocessing: bool = False,
    tolerance: float | None = None,
    strategy: Strategy = "full",
) -> ExportReport:
    """Write a graph of one kind: scores, features (of ``layers``), embedding, occlusion, or the gradient explanation
    saliency, guided_backprop or deconvnet.

    ``window`` and ``stride`` are in pixels and fixed in an occlusion graph, ``batch`` of whose windows run at a time;
    in other graphs ``batch`` counts only without ``dynamic_batch``, or where a network's gradient cannot be written for
    any number of pictures: the one size they then take. ``input_size`` is the side of the pictures in pixels (default:
    the model's). ``half`` keeps weights as float16 (not in gradients), ``preprocessing`` begins at uint8 RGB; gradients
    still are by the normalised picture. ``tolerance`` bounds max |torch - onnx| / max |torch| (default 1e-4, with
    ``half`` 5e-2); for gradients see ``gradients_verify``.

    ``strategy="incremental"`` makes an occlusion graph that recomputes for each window only what it changes, with the
    same scores (docs/occlusion.md, also on a patent); where that is not expected to be faster it writes a full sweep,
    and the report's ``note`` and the contract say so.

    A graph that disagrees stays beside as ``NAME.draft.onnx`` and raises ModelError with the numbers; after any other
    failure nothing is left, and what was at ``path`` before is untouched. Raises RequestError for what cannot be
    honoured, UnsupportedModelError where torch's exporter gives up.
    """
    started, path = time.perf_counter(), Path(path)
    require_kind(kind)
    allowed = tolerance if tolerance is not None else HALF_TOLERANCE if half else TOLERANCE
    options = Options(
        kind, tuple(layers), window, stride, batch, opset, dynamic_batch, half, preprocessing, allowed, strategy
    )
    require_options(options, classifier)
    require_place(path)
    require_eval(classifier.module)
    require_size(classifier, half=half)
    spec = resized(classifier.spec, input_size)
    traced = trace(classifier, spec, options)
    contract = _contract(traced, spec, options)
    onnx.helper.set_model_props(traced.proto, contract.metadata())
    found = _prove(_drafted(traced.proto, path), path, classifier, spec, allowed)
    return ExportReport(path, contract, found, time.perf_counter() - started, traced.speed_up)


def _contract(traced: Traced, spec: ModelSpec, options: Options) -> GraphContract:
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
    )


def _port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
    return Port(value.name, shape, _TYPES[kind.elem_type])


def _versions() -> dict[str, str]:
    names = ("torch", "onnx", "onnxscript")
    return {"convlens": convlens.__version__} | {name: version(name) for name in names}


def _drafted(proto: onnx.ModelProto, path: Path) -> Path:
    draft = path.with_name(f"{path.stem}.draft.onnx")
    try:
        draft.write_bytes(proto.SerializeToString())
    except OSError as error:
        draft.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise ConvLensError(f"{draft} cannot be written: {reason}; choose another folder or make room") from error
    return draft


def _prove(draft: Path, path: Path, classifier: Classifier, spec: ModelSpec, tolerance: float) -> tuple[Deviation, ...]:
    """Give the draft its name, or keep it and raise, or remove it where it could not even be compared."""
    compared = False
    try:
        found = deviations(OnnxRuntime(draft, providers="cpu"), classifier, spec)
        compared = True
        _require_agreement(found, tolerance, draft)
        draft.replace(path)
    finally:
        if not compared:
            draft.unlink(missing_ok=True)
    return found


def _require_agreement(found: Sequence[Deviation], tolerance: float, draft: Path) -> None:
    wrong = [one for one in found if not one.relative <= tolerance]
    if wrong:
        numbers = "; ".join(f"{one.output} off by {one.relative:.2e} for {one.pictures} pictures" for one in wrong[:5])
        raise ModelError(
            f"the graph disagrees with torch beyond {tolerance:g}: {numbers}; the draft is kept at {draft}, "
            f"and nothing was written under the name itself"
        )
