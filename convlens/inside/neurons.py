"""Gradients of single neurons of a layer, many in one backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from convlens.bulk.ahead import grouped
from convlens.errors import ModelError
from convlens.instrument import ReluRule, RuledRelus, UpTo, refuse_unruled
from convlens.models import Classifier
from convlens.types import Floats

Backprop = Literal["guided", "saliency", "none"]
RULE: dict[Backprop, ReluRule] = {"guided": "guided", "saliency": "plain"}
BATCH = 16


@dataclass(frozen=True)
class Unit:
    """A neuron of a layer: its channel, row and column; (0, 0) where the layer has lost its map."""

    channel: int
    y: int
    x: int


class NeuronGradients:
    """d neuron / d picture, for neurons of one layer, the network run no further than that layer.

    ``backprop`` is ``guided`` (guided backprop, which needs a network of ReLUs) or ``saliency`` (the plain gradient).
    Raises RequestError for a layer that there is not, UnsupportedModelError where guided backprop has no rule.
    """

    def __init__(self, classifier: Classifier, layer: str, *, backprop: Backprop = "guided") -> None:
        side = classifier.spec.crop
        self._device = classifier.device
        self._rule = RULE[backprop]
        self._up_to = UpTo(classifier.module, [layer], torch.zeros(1, 3, side, side, device=self._device))
        self._layer = layer
        self._checked = self._rule == "plain"

    def each(self, asked: Iterable[tuple[Floats, Unit]]) -> Iterator[Floats]:
        """For each normalised picture (C, H, W) and neuron the gradient (C, H, W), in order."""
        for some in grouped(asked, BATCH):
            yield from self._batch([x_CHW for x_CHW, _ in some], [unit for _, unit in some])

    def _batch(self, pictures: Sequence[Floats], units: Sequence[Unit]) -> Floats:
        x_NCHW = torch.from_numpy(np.stack(pictures)).to(self._device).requires_grad_()
        rules = RuledRelus()
        rules.set(self._rule)
        with torch.enable_grad(), rules:
            out = self._up_to(x_NCHW)[self._layer]
            # One sum: a row's gradient has nothing of the others, for each row has its own neuron.
            total = torch.stack([_neuron(row, unit) for row, unit in zip(out, units, strict=True)]).sum()
        if not self._checked:
            refuse_unruled(out, method="guided_backprop", even_none=True)
            self._checked = True
        (grad_NCHW,) = torch.autograd.grad(total, x_NCHW)
        if not torch.isfinite(grad_NCHW).all():
            raise ModelError(f"the gradient of layer {self._layer!r} is not finite; the weights may be damaged")
        return np.asarray(grad_NCHW.cpu().numpy())


def _neuron(out: torch.Tensor, unit: Unit) -> torch.Tensor:
    """Of one picture's output: (C, H, W), or (C,) where the map is lost."""
    return out[unit.channel, unit.y, unit.x] if out.ndim == 3 else out[unit.channel]
