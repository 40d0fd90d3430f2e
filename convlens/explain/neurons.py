"""Gradients of single neurons of a layer, many in one backward pass.

A batch through a network up to one layer, for explanations of single neurons instead of classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from convlens.errors import ModelError, RequestError, UnsupportedModelError
from convlens.explain.forward import Forward
from convlens.explain.registry import available_methods, get
from convlens.explain.registry import run as run_method
from convlens.explain.torch_forward import ForwardPass
from convlens.instrument import PartialForward, ReluRule, RuledRelus, require_relu_network
from convlens.models import Classifier
from convlens.types import Attribution, Floats, Ints, Meta, Neuron, Result, ScoreKind
from convlens.utils.concurrency import batched

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
        self._up_to = PartialForward(classifier.module, [layer], torch.zeros(1, 3, side, side, device=self._device))
        self._layer = layer
        self._checked = self._rule == "plain"

    def each(self, asked: Iterable[tuple[Floats, Unit]]) -> Iterator[Floats]:
        """For each normalised picture (C, H, W) and neuron the gradient (C, H, W), in order."""
        for some in batched(asked, BATCH):
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
            require_relu_network(out, method="guided_backprop", even_none=True)
            self._checked = True
        (grad_NCHW,) = torch.autograd.grad(total, x_NCHW)
        if not torch.isfinite(grad_NCHW).all():
            raise ModelError(f"the gradient of layer {self._layer!r} is not finite; the weights may be damaged")
        return np.asarray(grad_NCHW.cpu().numpy())


def _neuron(out: torch.Tensor, unit: Unit) -> torch.Tensor:
    """Of one picture's output: (C, H, W), or (C,) where the map is lost."""
    return out[unit.channel, unit.y, unit.x] if out.ndim == 3 else out[unit.channel]


class NeuronPass(Forward):
    """What ``forward`` is for classes, for one neuron a row, all of one layer; the network runs no further than that.

    ``neurons`` come without a place where the strongest one of their channel is meant; ``resolved`` says which that
    was. RequestError for a layer, channel, row or column that there is not.
    """

    runtime = "torch"

    def __init__(self, forward: ForwardPass, neurons: Sequence[Neuron]) -> None:
        super().__init__(
            forward.spec,
            forward.device,
            forward.x_NCHW,
            sweeps=forward.sweeps,
            gallery=forward.gallery,
            on_step=forward.on_step,
        )
        (self._layer,) = {neuron.layer for neuron in neurons}
        up_to = PartialForward(forward.classifier.module, [self._layer], self.x_NCHW)
        self._rules, self._checked, self._backwards = RuledRelus(), False, 0
        x_NCHW = self.x_NCHW.detach().clone().requires_grad_()
        with torch.enable_grad(), self._rules:
            out = up_to(x_NCHW)[self._layer]
        self._graph = x_NCHW, out
        self.resolved = [_resolved(neuron, row) for neuron, row in zip(neurons, out.detach(), strict=True)]
        values = torch.stack([row[_place(neuron)] for neuron, row in zip(self.resolved, out.detach(), strict=True)])
        self._activation_N = values.cpu().numpy()
        if not np.isfinite(self._activation_N).all():
            raise ModelError(f"layer {self._layer!r} gave NaN or infinity for this picture; the weights may be damaged")

    def record(self) -> None:
        """It is recorded from the beginning."""

    def release(self) -> None:
        """It lives no longer than its call."""

    @property
    def logits_NK(self) -> Floats:
        raise RequestError("a neuron has no logits; explain a class instead", field="target")

    @property
    def embedding_ND(self) -> Floats:
        raise RequestError("a neuron has no embedding; explain a class instead", field="target")

    @property
    def counts(self) -> Mapping[str, int]:
        return {"forwards": 1, "backwards": self._backwards, "relu_calls": self._rules.calls}

    def targets(self, given: Sequence[int] | Ints | None) -> Ints:
        """No classes: -1 for each row."""
        return np.full(len(self), -1)

    def scores(self, target_N: Ints, kind: Any) -> Floats:
        """The neurons' activations."""
        return self._activation_N

    def gradient(self, rule: ReluRule, target_N: Ints, *, score: ScoreKind = "logit", method: str) -> Tensor:
        if score != "logit":
            raise RequestError("a neuron has an activation and no probability; leave score out", field="options.score")
        x_NCHW, out = self._graph
        if rule != "plain" and not self._checked:
            require_relu_network(out, method=method, even_none=True)
            self._checked = True
        with torch.enable_grad():
            total = torch.stack([row[_place(neuron)] for neuron, row in zip(self.resolved, out, strict=True)]).sum()
        self._rules.set(rule)
        self._backwards += 1
        (grad_NCHW,) = torch.autograd.grad(total, x_NCHW, retain_graph=True)
        return grad_NCHW

    def meta(self, kind: ScoreKind, **more: Any) -> Meta:
        return replace(super().meta(kind, **more), target_kind="activation", layer=self._layer)

    def attribution(self, *given: Any, **more: Any) -> Attribution:
        return replace(super().attribution(*given, **more), neurons_N=tuple(self.resolved))


def run_neurons(
    name: str, forward: Forward, neurons: Sequence[Neuron], options: Mapping[str, Any] | None = None
) -> Result:
    """Explain for each row of ``forward`` a neuron of its own (Zeiler & Fergus 2014 draw theirs so).

    Rows with neurons of one layer go through the network together, up to that layer. Raises RequestError for a method
    that is not a gradient's, UnsupportedModelError for a model of graphs, and as ``NeuronPass`` does.
    """
    require_neurons(name)
    if not isinstance(forward, ForwardPass):
        raise UnsupportedModelError(
            "a neuron is explained by the network itself, and this model consists of graphs; serve it with "
            "--runtime torch, or explain a class",
            field="target",
        )
    if len(neurons) != len(forward):
        raise RequestError(f"{len(forward)} pictures need as many neurons; got {len(neurons)}", field="target")
    parts: list[tuple[list[int], Attribution]] = []
    for rows in _by_layer(neurons):
        part = run_method(name, NeuronPass(forward.select(rows), [neurons[n] for n in rows]), None, options)
        assert isinstance(part, Attribution), "what a gradient method gives"
        parts.append((rows, part))
    return _joined(parts)


def require_neurons(name: str) -> None:
    """RequestError for a method that explains classes only."""
    able = [method for method in available_methods() if get(method).needs == "gradient"]
    if name not in able:
        raise RequestError(f"{name} explains classes; neurons are explained by {', '.join(able)}", field="target")


def _by_layer(neurons: Sequence[Neuron]) -> Iterator[list[int]]:
    for layer in dict.fromkeys(neuron.layer for neuron in neurons):
        yield [n for n, neuron in enumerate(neurons) if neuron.layer == layer]


def _joined(parts: Sequence[tuple[list[int], Attribution]]) -> Attribution:
    """The rows in their own order again."""
    if len(parts) == 1:
        return parts[0][1]
    order = np.argsort([n for rows, _ in parts for n in rows])
    found = [part for _, part in parts]
    neurons = [neuron for part in found for neuron in part.neurons_N]
    return replace(
        found[0],
        values_NCHW=np.concatenate([part.values_NCHW for part in found])[order],
        score_N=np.concatenate([part.score_N for part in found])[order],
        target_N=np.concatenate([part.target_N for part in found])[order],
        neurons_N=tuple(neurons[n] for n in order),
    )


def _resolved(neuron: Neuron, out: Tensor) -> Neuron:
    """With the place of the channel's largest value where none is given; ``out`` is one row's."""
    if out.ndim not in (1, 3):
        raise RequestError(
            f"layer {neuron.layer!r} gives {'×'.join(map(str, out.shape))} numbers a picture, neither a map of "
            "channels nor a row of them; choose another",
            field="layer",
        )
    if not 0 <= neuron.channel < len(out):
        raise RequestError(
            f"layer {neuron.layer!r} has no channel {neuron.channel}; there are 0..{len(out) - 1}", field="channel"
        )
    if out.ndim == 1:
        if neuron.y is not None:
            raise RequestError(f"layer {neuron.layer!r} has no map, so leave y and x out", field="y")
        return neuron
    rows, columns = out.shape[1:]
    if neuron.y is None or neuron.x is None:
        y, x = divmod(int(out[neuron.channel].argmax()), columns)
        return replace(neuron, y=y, x=x)
    for name, given, count in (("y", neuron.y, rows), ("x", neuron.x, columns)):
        if not 0 <= given < count:
            raise RequestError(f"layer {neuron.layer!r} has {name} of 0..{count - 1}; got {given}", field=name)
    return neuron


def _place(neuron: Neuron) -> tuple[int, ...]:
    return (neuron.channel,) if neuron.y is None or neuron.x is None else (neuron.channel, neuron.y, neuron.x)
