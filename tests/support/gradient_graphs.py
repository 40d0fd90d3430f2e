"""Small networks whose gradient explanations are exported, and how near to the true ones they must come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nets
import torch
from torch import Tensor, nn

from convlens.models import Classifier
from convlens.runtime.graph_contract import GradientKind, Kind
from convlens.runtime.onnx_runtime import OnnxRuntime
from export.exporter import export
from export.gradients.tracing import RULES, Gradient, unroll


def small(module: nn.Module, *, classes: int = 3, crop: int = 12) -> Classifier:
    return nets.classifier(module.float(), classes=classes, crop=crop)


def graph_of(classifier: Classifier, kind: Kind, folder: Path, **options: Any) -> OnnxRuntime:
    return OnnxRuntime(export(classifier, kind, folder / f"{kind}.onnx", **options).path, providers="cpu")


def steps_of(module: nn.Module, kind: GradientKind, x_NCHW: Tensor, *, traced: int = 2) -> Any:
    """The explanation as forward steps, traced at so many pictures and left open for more."""
    inputs = torch.zeros(traced, *x_NCHW.shape[1:], dtype=x_NCHW.dtype), torch.zeros(traced, dtype=torch.int64)
    return unroll(Gradient(module, RULES[kind]), inputs, open_batch=True)


def close(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    # float32 sums in another order; of the largest value, since a gradient's zeros are sums that cancel
    assert nets.relative_error(found, torch.as_tensor(wanted).to(torch.as_tensor(found).dtype)) <= tolerance
