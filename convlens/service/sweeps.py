"""The exported graph that occlusion sweeps run on."""

from __future__ import annotations

from pathlib import Path

from convlens.explain import Scorer
from convlens.models import Classifier


def graph_scorer(graph: Path, classifier: Classifier, *, threads: int | None = None) -> Scorer:
    """The graph on the model's own kind of device; ModelError where it came from other weights."""
    from convlens.runtime.onnx_ import OnnxRuntime  # on first use: most archives and runs carry no graph

    device = classifier.device
    runtime = OnnxRuntime(
        graph,
        providers="cuda" if device.type == "cuda" else "cpu",
        device_id=device.index or 0,
        threads=threads,
    )
    runtime.require_weights(classifier.spec.weights_sha256)
    return runtime
