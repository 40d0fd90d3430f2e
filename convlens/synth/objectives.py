"""Objectives of activation maximisation: classes, neurons, channels or whole layers, one for each row of the batch.

The choices are those of Olah et al. 2017 (Feature Visualization, distill.pub/2017/feature-visualization).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convlens.errors import RequestError
from convlens.instrument import PartialForward, in_format_of
from convlens.models import Classifier
from convlens.synth.images import half_on_gpus


@dataclass(frozen=True)
class Objective:
    """What one image maximises.

    Without ``layer`` the logit of the class ``index``. Otherwise the layer's channel ``index`` (its mean over the map),
    the neuron of that channel at ``y``, ``x``, or without an index the layer's energy ½ mean a².
    """

    name: str
    layer: str = ""
    index: int | None = None
    y: int | None = None
    x: int | None = None


class BatchObjective:
    """Values (N,) of a batch of images, each by its own objective: all of one layer, or all classes.

    Raises RequestError for a layer, channel or place that the network does not have, at inputs of ``size``.
    """

    def __init__(self, classifier: Classifier, objectives: Sequence[Objective], size: tuple[int, int]) -> None:
        self._objectives = objectives
        (self._layer,) = {objective.layer for objective in objectives}
        self._module = classifier.module
        example = torch.zeros(1, len(classifier.spec.mean), *size, device=classifier.device)
        self._up_to = PartialForward(classifier.module, [self._layer], example) if self._layer else None
        with torch.no_grad():
            output = self._output(example)
        _require_units(output, objectives)

    def values(self, x_NCHW: Tensor, rows: slice = slice(None)) -> Tensor:
        """The objectives of these rows, each for its image."""
        outputs = self._output(x_NCHW)
        return torch.stack([_value(*pair) for pair in zip(outputs, self._objectives[rows], strict=True)])

    def _output(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = in_format_of(self._module, x_NCHW)
        with half_on_gpus(x_NCHW.device):
            output: Tensor = self._module(x_NCHW) if self._up_to is None else self._up_to(x_NCHW)[self._layer]
        return output.float()


def _value(output: Tensor, objective: Objective) -> Tensor:
    """The objective of one row of the layer's output."""
    if objective.index is None:
        return (output**2).mean() / 2
    if objective.y is not None and objective.x is not None:
        return output[objective.index, objective.y, objective.x]
    return output[objective.index].mean()


def _require_units(output: Tensor, objectives: Sequence[Objective]) -> None:
    for objective in objectives:
        layer, index, channels = objective.layer, objective.index, output.shape[1]
        if index is not None and index >= channels:
            raise RequestError(f"layer {layer!r} has no channel {index}; there are 0..{channels - 1}", field="channels")
        if objective.y is None or objective.x is None:
            continue
        if output.ndim != 4:
            raise RequestError(f"layer {layer!r} has no map, so leave y and x out", field="y")
        for field, place, count in (("y", objective.y, output.shape[2]), ("x", objective.x, output.shape[3])):
            if place >= count:
                raise RequestError(f"layer {layer!r} has {field} of 0..{count - 1}; got {place}", field=field)
