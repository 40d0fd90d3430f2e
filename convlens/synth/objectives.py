"""What is maximised: classes, neurons, channels, whole layers. One a row of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convlens.errors import RequestError
from convlens.instrument import PartialForward
from convlens.models import Classifier
from convlens.synth.images import channels_last, half_on_gpus


@dataclass(frozen=True)
class Objective:
    """One picture's: a class where ``layer`` is "", else of that layer a channel (its mean over the map), a neuron of
    it at ``y``, ``x``, or without a channel the layer's energy ½ mean a².
    """

    name: str
    layer: str = ""
    index: int | None = None
    y: int | None = None
    x: int | None = None


class BatchObjective:
    """Values (N,) of pictures, each by its own goal; all goals of one layer, or all classes."""

    def __init__(self, classifier: Classifier, goals: Sequence[Objective], size: tuple[int, int]) -> None:
        self._goals = goals
        (self._layer,) = {goal.layer for goal in goals}
        self._module = classifier.module
        example = torch.zeros(1, len(classifier.spec.mean), *size, device=classifier.device)
        self._up_to = PartialForward(classifier.module, [self._layer], example) if self._layer else None
        with torch.no_grad():
            out = self._out(example)
        _require_units(out, goals)

    def values(self, x_NCHW: Tensor, rows: slice = slice(None)) -> Tensor:
        """What the goals of these rows say of these pictures."""
        out = self._out(x_NCHW)
        return torch.stack([_value(one, goal) for one, goal in zip(out, self._goals[rows], strict=True)])

    def _out(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = channels_last(x_NCHW)
        with half_on_gpus(x_NCHW.device):
            found: Tensor = self._module(x_NCHW) if self._up_to is None else self._up_to(x_NCHW)[self._layer]
        return found.float()


def _value(out: Tensor, goal: Objective) -> Tensor:
    """Of one row of the layer's output."""
    if goal.index is None:
        return (out**2).mean() / 2
    if goal.y is not None and goal.x is not None:
        return out[goal.index, goal.y, goal.x]
    return out[goal.index].mean()


def _require_units(out: Tensor, goals: Sequence[Objective]) -> None:
    for goal in goals:
        if goal.index is not None and goal.index >= out.shape[1]:
            raise RequestError(
                f"layer {goal.layer!r} has no channel {goal.index}; there are 0..{out.shape[1] - 1}", field="channels"
            )
        if goal.y is None or goal.x is None:
            continue
        if out.ndim != 4:
            raise RequestError(f"layer {goal.layer!r} has no map, so leave y and x out", field="y")
        for field, given, count in (("y", goal.y, out.shape[2]), ("x", goal.x, out.shape[3])):
            if given >= count:
                raise RequestError(f"layer {goal.layer!r} has {field} of 0..{count - 1}; got {given}", field=field)
