"""The model behind an engine: a network run by torch, maybe with graphs for its sweeps, or exported graphs alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convlens.explain import ForwardPass, GraphForward, GraphModel, torch_sweeps
from convlens.explain.forward import Forward, OnStep
from convlens.explain.onnx_forward import graph_backends, graph_sweeps
from convlens.explain.sweeps.autotune import SweepAutotuner
from convlens.gallery import Gallery
from convlens.models import Classifier
from convlens.runtime.graph_contract import labels_sha256
from convlens.types import Floats

if TYPE_CHECKING:
    from convlens.runtime.graph_set import GraphSet

Model = Classifier | GraphModel


def forward_of(
    model: Model, x_NCHW: Floats, *, sweeps: SweepAutotuner, gallery: Gallery | None, on_step: OnStep
) -> Forward:
    """A batch through that kind of model; nothing is computed before it is asked for."""
    if isinstance(model, GraphModel):
        return GraphForward(model, x_NCHW, sweeps=sweeps, gallery=gallery, on_step=on_step)
    return ForwardPass(model, x_NCHW, sweeps=sweeps, gallery=gallery, on_step=on_step)


def sweeps_for(model: Model, graphs: GraphSet | None) -> SweepAutotuner:
    """The model's sweep backends. An engine keeps them for as long as it lives, so that it learns which is fast."""
    if isinstance(model, GraphModel):
        return graph_sweeps(model)
    return torch_sweeps(model, graph_backends(graphs) if graphs else ())


def graphs_beside(classifier: Classifier, paths: Sequence[Path], *, threads: int | None = None) -> GraphSet | None:
    """GraphSet for a network's sweeps, from files or folders, on the network's own kind of device; None for no paths.

    ModelError where they were exported from other weights.
    """
    if not paths:
        return None
    from convlens.runtime.graph_set import open_graphs  # on first use: most runs carry no graph

    device = classifier.device
    return open_graphs(
        paths,
        weights_sha256=classifier.spec.weights_sha256,
        labels_sha256=labels_sha256(classifier.spec.labels),
        providers="cuda" if device.type == "cuda" else "cpu",
        device_id=device.index or 0,
        threads=threads,
    )
