"""What an engine may hold: a network by torch, or exported graphs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convlens.explain import ForwardPass, GraphForward, GraphModel, sweeps_of
from convlens.explain.base import Forward, OnStep
from convlens.explain.graphs import graph_sweeps, graph_ways
from convlens.explain.sweeps import Sweeps
from convlens.gallery import Gallery
from convlens.models import Classifier
from convlens.types import Floats

if TYPE_CHECKING:
    from convlens.runtime.graphs import Graphs

Model = Classifier | GraphModel


def sweeps_for(model: Model, graphs: Graphs | None) -> Sweeps:
    """The ways of sweeping, the engine's for as long as it lives, so that it learns which is fast."""
    if isinstance(model, GraphModel):
        return graph_sweeps(model)
    return sweeps_of(model, graph_ways(graphs) if graphs else ())


def forward_of(model: Model, x_NCHW: Floats, *, sweeps: Sweeps, gallery: Gallery | None, on_step: OnStep) -> Forward:
    """A batch through that kind of model."""
    if isinstance(model, GraphModel):
        return GraphForward(model, x_NCHW, sweeps=sweeps, gallery=gallery, on_step=on_step)
    return ForwardPass(model, x_NCHW, sweeps=sweeps, gallery=gallery, on_step=on_step)
