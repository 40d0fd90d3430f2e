"""The options of an export, checked before the half minute that it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from convlens.errors import RequestError, UnsupportedModelError, near_matches
from convlens.instrument import find_layer, require_eval
from convlens.models import Classifier, is_scripted
from convlens.runtime.graph_contract import BACKWARD, CAM, KINDS, Kind, Strategy
from convlens.types import ModelSpec

# 18 is the first opset that torch's exporter writes, 23 the last that it knows; 20 is its own default.
MIN_OPSET, OPSET, MAX_OPSET = 18, 20, 23
# float32 sums in another order differ by about 1e-6; half precision keeps three digits, and errors add up over layers.
TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
# A graph must be one file, and protobuf ends at 2 GiB.
MAX_BYTES = 2**31 - 2**24


@dataclass(frozen=True)
class ExportOptions:
    """As documented in ``export``."""

    kind: Kind
    layers: tuple[str, ...]
    window: int
    stride: int
    batch: int
    opset: int
    dynamic_batch: bool
    half: bool
    preprocessing: bool
    tolerance: float
    strategy: Strategy = "full"


def require_exportable(options: ExportOptions, classifier: Classifier, path: Path) -> None:
    """RequestError for options that cannot be honoured, ModelError for a network in training mode."""
    if options.kind not in KINDS:
        matches = near_matches(options.kind, KINDS)
        raise RequestError(f"no graph {options.kind!r}; there are: {', '.join(KINDS)}{matches}", field="kind")
    _require_classes(options, classifier)
    _require_numbers(options)
    _require_strategy(options)
    _require_layers(options, classifier)
    _require_output_path(path)
    require_eval(classifier.module)
    _require_seen(classifier)
    _require_file_size(classifier, half=options.half)


def _require_classes(options: ExportOptions, classifier: Classifier) -> None:
    if not classifier.spec.classes and options.kind in (*BACKWARD, "occlusion"):
        raise UnsupportedModelError(
            f"a graph of {options.kind} explains a class, and this network gives embeddings and has none; export "
            "embedding or features",
            field="kind",
        )


def _require_numbers(options: ExportOptions) -> None:
    if not MIN_OPSET <= options.opset <= MAX_OPSET:
        raise RequestError(f"opset={options.opset} cannot be written; use {MIN_OPSET}..{MAX_OPSET}", field="opset")
    if options.batch < 1:
        raise RequestError(f"batch={options.batch} holds no picture; use 1 or more", field="batch")
    if options.tolerance <= 0:
        raise RequestError(f"tolerance={options.tolerance} lets nothing pass; use a number above 0", field="tolerance")
    if options.half and options.kind in BACKWARD:
        raise RequestError(
            f"half=True would move ReLUs of a graph of {options.kind} across zero, and the gradient jumps "
            "there; leave it out",
            field="half",
        )


def _require_strategy(options: ExportOptions) -> None:
    if options.strategy not in STRATEGIES:
        raise RequestError(
            f"no strategy {options.strategy!r}; there are: {', '.join(STRATEGIES)}"
            f"{near_matches(options.strategy, STRATEGIES)}",
            field="strategy",
        )
    if options.strategy != "full" and options.kind != "occlusion":
        raise RequestError(
            f"a graph of {options.kind} has no windows to recompute for; strategy='incremental' is for occlusion",
            field="strategy",
        )


def _require_layers(options: ExportOptions, classifier: Classifier) -> None:
    if options.kind not in ("features", CAM):
        if options.layers:
            raise RequestError(f"a graph of {options.kind} takes no layers; ask for features or cam", field="layers")
        return
    if not options.layers:
        raise RequestError("a graph of features needs the names of one or more layers", field="layers")
    if options.kind == CAM and len(options.layers) > 1:
        raise RequestError(
            f"a graph of cam is of one layer, not of {', '.join(options.layers)}; export one for each", field="layers"
        )
    if len(set(options.layers)) < len(options.layers):
        raise RequestError(f"a layer is named twice in {', '.join(options.layers)}", field="layers")
    for layer in options.layers:
        find_layer(classifier.module, layer)


def _require_seen(classifier: Classifier) -> None:
    """UnsupportedModelError for a network that shows no operators."""
    if is_scripted(classifier.module):
        raise UnsupportedModelError(
            f"{classifier.spec.name} is scripted or traced, wholly or in part, and torch's exporter cannot look into "
            "that; export the network that it was made from",
            field="kind",
        )


def _require_file_size(classifier: Classifier, *, half: bool) -> None:
    """RequestError for weights that do not fit into one file."""
    size = sum(tensor.nbytes for tensor in classifier.module.state_dict().values()) // (2 if half else 1)
    if size > MAX_BYTES:
        raise RequestError(
            f"{classifier.spec.name} has {size / 2**30:.1f} GiB of weights, but one ONNX file holds 2; use half=True"
        )


def resize_spec(spec: ModelSpec, size: int | tuple[int, int] | None) -> ModelSpec:
    """The spec with images of another side, or height and width, at the model's own proportion of crop to resize."""
    height, width = spec.input_size if size is None else (size, size) if isinstance(size, int) else size
    if (height, width) == spec.input_size:
        return spec
    if min(height, width) < 1:
        raise RequestError(f"input_size={size} is no side of a picture; use 1 or more pixels", field="input_size")
    resize = [
        max(side, round(long * side / crop)) if spec.crop_mode != "border" else round(long * side / crop)
        for side, long, crop in zip((height, width), spec.resize_size, spec.input_size, strict=True)
    ]
    return replace(
        spec,
        crop=height,
        resize=resize[0],
        crop_width=None if width == height else width,
        resize_width=None if resize[1] == resize[0] else resize[1],
    )


def _require_output_path(path: Path) -> None:
    """RequestError for a path that no graph can be written to."""
    if path.suffix != ".onnx" or path.name.endswith(".draft.onnx"):
        raise RequestError(f"{path} should end in .onnx (and .draft.onnx is for drafts)", field="path")
    if path.is_dir():
        raise RequestError(f"{path} is a folder; give the name of a file", field="path")
    if not path.parent.is_dir():
        raise RequestError(f"there is no folder {path.parent}; make it first", field="path")
