"""How well families of networks export: each kind of graph compared with torch, with seeded weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from convlens.errors import ConvLensError, UnsupportedModelError
from convlens.models import Classifier, load
from convlens.runtime.graph_contract import CAM, GRADIENTS, KINDS, Kind
from convlens.types import no_op
from export.exporter import export
from export.gradients.tracing import require_rule

DEFAULT = "packaged:efficientnet_lite0"
_UNTRAINED = (
    "alexnet vgg16 resnet18 resnet50 resnet101 resnext50_32x4d densenet121 googlenet inception_v3 squeezenet1_0 "
    "squeezenet1_1 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large shufflenet_v2_x1_0 mnasnet1_0 regnet_y_400mf "
    "efficientnet_b0 convnext_tiny"
)
FAMILIES = (DEFAULT, *(f"torchvision:{name}:untrained" for name in _UNTRAINED.split()))


@dataclass(frozen=True)
class Row:
    """``worst`` is the largest relative difference of any output at any batch size; ``error`` why there is none.

    ``refused``: the explanation is not defined for this network (a ReLU rule, but other activations; maps, but no layer
    that has any).
    """

    model: str
    kind: Kind
    worst: float | None
    seconds: float
    error: str = ""
    refused: bool = False


def compare_families(
    models: Iterable[str] = FAMILIES, kinds: Sequence[Kind] = KINDS, *, on_row: Callable[[Row], None] = no_op
) -> list[Row]:
    """Export each model as each kind and compare it with torch; a minute or two for a model on two cores.

    Untrained weights are seeded, graphs are not kept. A failure is a row, not an exception.
    """
    rows: list[Row] = []
    for model in models:
        classifier = load(model, device="cpu")
        for kind in kinds:
            rows.append(_row(classifier, kind))
            on_row(rows[-1])
    return rows


def _row(classifier: Classifier, kind: Kind) -> Row:
    spec = classifier.spec
    layers = tuple(dict.fromkeys((spec.first_convolution, spec.gradcam_layer))) if kind == "features" else ()
    with tempfile.TemporaryDirectory(prefix="convlens-export-") as folder:
        try:
            report = export(classifier, kind, Path(folder) / "graph.onnx", layers=layers)
        except UnsupportedModelError as error:
            return Row(spec.name, kind, None, 0.0, error.message, refused=_is_undefined(classifier, kind))
        except ConvLensError as error:
            return Row(spec.name, kind, None, 0.0, error.message)
    return Row(spec.name, kind, report.worst.relative, report.seconds)


def _is_undefined(classifier: Classifier, kind: Kind) -> bool:
    if kind == CAM:
        return not classifier.spec.gradcam_layer
    if kind not in GRADIENTS:
        return False
    try:
        require_rule(classifier, classifier.spec, kind)
    except UnsupportedModelError:
        return True
    return False


def markdown(rows: Sequence[Row]) -> str:
    """A table with a line for each model and a column for each kind."""
    kinds = list(dict.fromkeys(row.kind for row in rows))
    lines = ["| model | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
    for model in dict.fromkeys(row.model for row in rows):
        cells = {row.kind: _cell(row) for row in rows if row.model == model}
        lines.append(f"| {model} | " + " | ".join(cells.get(kind, "") for kind in kinds) + " |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    if row.worst is None:
        return "refused" if row.refused else "failed"
    return f"{row.worst:.1e}"
