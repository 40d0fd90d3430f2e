"""The exported graphs that a network's occlusion sweeps run on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convlens.models import Classifier
from convlens.runtime.contract import labels_sha256

if TYPE_CHECKING:
    from convlens.runtime.graphs import Graphs


def graphs_beside(classifier: Classifier, paths: Sequence[Path], *, threads: int | None = None) -> Graphs | None:
    """The graphs, files or folders of them, on the network's own kind of device; None for no paths.

    ModelError where they came from other weights.
    """
    if not paths:
        return None
    from convlens.runtime.graphs import open_graphs  # on first use: most runs carry no graph

    device = classifier.device
    return open_graphs(
        paths,
        weights_sha256=classifier.spec.weights_sha256,
        labels_sha256=labels_sha256(classifier.spec.labels),
        providers="cuda" if device.type == "cuda" else "cpu",
        device_id=device.index or 0,
        threads=threads,
    )
