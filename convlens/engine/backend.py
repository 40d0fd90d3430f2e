"""What an engine is built from: its options, and its model, a network (maybe with graphs for its sweeps) or graphs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from convlens.errors import ModelError
from convlens.explain import ForwardPass, GraphForward, GraphModel, run, torch_sweeps
from convlens.explain.captured_forward import captured_of
from convlens.explain.forward import Forward, OnStep
from convlens.explain.onnx_forward import graph_backends, graph_sweeps
from convlens.explain.sweeps.autotune import SweepAutotuner
from convlens.gallery import Gallery
from convlens.instrument import RULES, require_precision
from convlens.models import Classifier
from convlens.runtime.graph_contract import labels_sha256
from convlens.types import ArithmeticPrecision, Floats, no_op

if TYPE_CHECKING:
    from convlens.runtime.graph_set import GraphSet


@dataclass(frozen=True)
class EngineOptions:
    """``default_methods`` answer a request that asks to be explained but names no method.

    ``max_cost`` bounds the work on one request in forward passes; ``max_seconds`` bounds what it is expected to take
    and what a whole batch may take; None for no such bound. What would exceed them is refused before it starts; a batch
    that takes a tenth longer all the same is stopped, so set it well below the time after which a server kills the
    worker. ``shows_details``: internal errors are told in their own words, for whoever asks is the user of this process
    and no client. ``sweeps_at``: the name of the model entry that answers what has many windows or samples; this one
    then refuses that. ``precision`` is as for ``convlens.load``; None is the model's own. Raises ModelError for
    impossible values.
    """

    name: str = "convlens"
    version: str = "1.0"
    default_methods: tuple[str, ...] = ("saliency", "guided_backprop", "occlusion")
    max_cost: float = 2_000.0
    max_seconds: float | None = None  # TorchServe's responseTimeout kills a worker together with its whole batch
    sweeps_at: str = ""
    shows_details: bool = False
    precision: ArithmeticPrecision | None = None

    def __post_init__(self) -> None:
        require_precision(self.precision)
        for name in ("max_cost", "max_seconds"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ModelError(f"{name}={limit} allows nothing; use more than 0")


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


def warm_up(model: Model, sweeps: SweepAutotuner, batch_size: int) -> None:
    """On a GPU, capture the passes of every batch size up to this one, and run the usual sweep until it is timed."""
    # Elsewhere the first pass is hardly slower than the next.
    if isinstance(model, GraphModel) or model.device.type != "cuda":
        return
    shape, passes = (model.spec.channels, *model.spec.input_size), captured_of(model)
    if passes is not None:
        for size in _sizes(batch_size):
            x_NCHW = torch.zeros((size, *shape), device=model.device)
            rows = torch.arange(size, device=model.device)
            with passes.lock:
                captured = passes.capture(x_NCHW)
                if captured is not None:
                    for rule in RULES:
                        captured.gradient(rule, x_NCHW, rows, torch.zeros_like(rows), owner=captured)
    forward = forward_of(model, np.zeros((1, *shape), np.float32), sweeps=sweeps, gallery=None, on_step=no_op)
    # Each backend in float32 compiles, captures, and is timed; then the fastest is known.
    for _ in range(3 * len([backend for backend in sweeps.backends if backend.precision == "float32"])):
        run("occlusion", forward, [0], {"precision": "float32"})


def _sizes(batch_size: int) -> list[int]:
    """1, 2, 4, … and the largest batch itself."""
    return [*itertools.takewhile(lambda size: size < batch_size, (2**n for n in itertools.count())), batch_size]


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
        tf32=classifier.precision == "tf32",
    )
