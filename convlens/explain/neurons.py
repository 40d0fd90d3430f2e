"""Explanations of single neurons of a layer instead of classes; the network runs no further than that layer."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convlens.errors import ModelError, RequestError, UnsupportedModelError
from convlens.explain.forward import Forward, MakeImages
from convlens.explain.input_gradient import input_gradient, require_reached
from convlens.explain.registry import available_methods, get
from convlens.explain.registry import run as run_method
from convlens.explain.torch_forward import ForwardPass
from convlens.instrument import PartialForward, ReluRule, RuledRelus, arithmetic, require_relu_network
from convlens.runtime.torch_runtime import widened
from convlens.types import Attribution, Floats, Ints, Meta, Neuron, Result, ScoreKind


def run_neurons(
    name: str, forward: Forward, neurons: Sequence[Neuron], options: Mapping[str, Any] | None = None
) -> Result:
    """Explain for each row of ``forward`` a neuron of its own, as Zeiler & Fergus (2014) draw theirs.

    Rows with neurons of one layer go through the network together, up to that layer. Raises RequestError for a method
    that is not one of gradients, UnsupportedModelError for a model of graphs, and as ``NeuronPass`` does.
    """
    require_neurons(name)
    if not isinstance(forward, ForwardPass):
        raise UnsupportedModelError(
            "a neuron is explained by the network itself, and this model consists of graphs; serve it with "
            "--runtime torch, or explain a class",
            field="target",
        )
    if len(neurons) != len(forward):
        raise RequestError(f"{len(forward)} images need as many neurons; got {len(neurons)}", field="target")
    parts: list[tuple[list[int], Attribution]] = []
    for layer in dict.fromkeys(neuron.layer for neuron in neurons):
        rows = [n for n, neuron in enumerate(neurons) if neuron.layer == layer]
        with arithmetic(forward.precision, forward.device):
            neuron_pass = NeuronPass(forward.select(rows), [neurons[n] for n in rows])
        part = run_method(name, neuron_pass, None, options)
        assert isinstance(part, Attribution), "what a gradient method gives"
        parts.append((rows, part))
    return _in_row_order(parts)


def require_neurons(name: str) -> None:
    """RequestError for a method that explains classes only."""
    able = [method for method in available_methods() if get(method).needs == "gradient"]
    if name not in able:
        raise RequestError(f"{name} explains classes; neurons are explained by {', '.join(able)}", field="target")


class NeuronGraph:
    """A batch recorded up to one layer, with one neuron of that layer for each row.

    ``x_NCHW`` is normalised. Neurons without a place stand for the largest activation of their channel; ``neurons``
    has the places filled in, ``activation_N`` the values there. RequestError for a channel, row or column that does not
    exist, ModelError for activations that are not finite.
    """

    def __init__(self, partial_forward: PartialForward, x_NCHW: Tensor, neurons: Sequence[Neuron]) -> None:
        (self.layer,) = {neuron.layer for neuron in neurons}
        self._rules, self._guarded = RuledRelus(), False
        self._module = partial_forward.module
        self._x_NCHW = x_NCHW.detach().clone().requires_grad_()
        with torch.enable_grad(), self._rules:
            self._out = partial_forward(self._x_NCHW)[self.layer]
        self.neurons = [_placed(neuron, row) for neuron, row in zip(neurons, self._out.detach(), strict=True)]
        self.activation_N: Floats = widened(self._values(self._out.detach())).cpu().numpy()
        self.backwards = 0
        if not np.isfinite(self.activation_N).all():
            raise ModelError(f"layer {self.layer!r} gave NaN or infinity for this image; the weights may be damaged")

    @property
    def relu_calls(self) -> int:
        return self._rules.calls

    def gradient(self, rule: ReluRule, *, method: str) -> Tensor:
        """d neuron / d image (N, C, H, W); UnsupportedModelError, naming ``method``, where the rule is not defined."""
        require_reached(self._out, method=method)
        if rule != "plain" and not self._guarded:
            # No ReLU at all is fine here: before the first one every rule is the plain gradient.
            require_relu_network(self._out, method=method, even_none=True)
            self._guarded = True
        with torch.enable_grad():
            # One backward pass of the sum: a row's neuron does not depend on the other rows.
            total = self._values(self._out).sum()
        self._rules.set(rule)
        self.backwards += 1
        return input_gradient(total, self._x_NCHW, module=self._module, method=method, keep=True)

    def _values(self, out: Tensor) -> Tensor:
        return torch.stack([row[_index(neuron)] for neuron, row in zip(self.neurons, out, strict=True)])


class NeuronPass(Forward):
    """As ``forward``, with a neuron in place of each row's class; all neurons are of one layer.

    RequestError for a layer that does not exist, and as ``NeuronGraph`` does.
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
            precision=forward.precision,
        )
        partial_forward = PartialForward(forward.classifier.module, [neuron.layer for neuron in neurons], self.x_NCHW)
        self._graph = NeuronGraph(partial_forward, self.x_NCHW, neurons)

    @property
    def explains_classes(self) -> bool:
        return False

    def compute(self) -> None:
        """Nothing to do: the pass is made from the beginning."""

    def outputs_of(self, x_NCHW: Tensor | Floats) -> Floats:
        raise RequestError("a neuron has no logits; explain a class instead", field="target")

    def outputs_in_parts(self, count: int, images: MakeImages) -> Generator[Floats]:
        raise RequestError("a neuron has no logits; explain a class instead", field="target")

    def record(self) -> None:
        """Nothing to do: the pass is recorded from the beginning."""

    def release(self) -> None:
        """Nothing to do: the pass lives no longer than the call that made it."""

    @property
    def logits_NK(self) -> Floats:
        raise RequestError("a neuron has no logits; explain a class instead", field="target")

    @property
    def embedding_ND(self) -> Floats:
        raise RequestError("a neuron has no embedding; explain a class instead", field="target")

    @property
    def counts(self) -> Mapping[str, int]:
        return {"forwards": 1, "backwards": self._graph.backwards, "relu_calls": self._graph.relu_calls}

    def targets(self, target_N: Sequence[int] | Ints | None) -> Ints:
        """No classes: -1 for each row."""
        return np.full(len(self), -1)

    def scores(self, target_N: Ints, kind: Any) -> Floats:
        """The neurons' activations."""
        return self._graph.activation_N

    def gradient(self, rule: ReluRule, target_N: Ints, *, score: ScoreKind = "logit", method: str) -> Tensor:
        if score != "logit":
            raise RequestError("a neuron has an activation and no probability; leave score out", field="options.score")
        return self._graph.gradient(rule, method=method)

    def layer_gradient(self, layer: str, target_N: Ints) -> tuple[Tensor, Tensor]:
        raise RequestError("a neuron has no class activation maps; explain a class instead", field="target")

    def meta(self, kind: ScoreKind, **more: Any) -> Meta:
        return replace(super().meta(kind, **more), target_kind="activation", layer=self._graph.layer)

    def attribution(self, *args: Any, **kwargs: Any) -> Attribution:
        return replace(super().attribution(*args, **kwargs), neurons_N=tuple(self._graph.neurons))


def _in_row_order(parts: Sequence[tuple[list[int], Attribution]]) -> Attribution:
    """One result from those of several layers, each with its row numbers."""
    if len(parts) == 1:
        return parts[0][1]
    order = np.argsort([n for rows, _ in parts for n in rows])
    results = [result for _, result in parts]
    neurons = [neuron for result in results for neuron in result.neurons_N]
    return replace(
        results[0],
        values_NCHW=np.concatenate([result.values_NCHW for result in results])[order],
        score_N=np.concatenate([result.score_N for result in results])[order],
        target_N=np.concatenate([result.target_N for result in results])[order],
        neurons_N=tuple(neurons[n] for n in order),
    )


def _placed(neuron: Neuron, out: Tensor) -> Neuron:
    """The neuron with its row and column, checked against ``out``, what the layer gave for its image."""
    if out.ndim not in (1, 3):
        raise RequestError(
            f"layer {neuron.layer!r} gives {'×'.join(map(str, out.shape))} numbers per image, neither a map of "
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
    for name, index, count in (("y", neuron.y, rows), ("x", neuron.x, columns)):
        if not 0 <= index < count:
            raise RequestError(f"layer {neuron.layer!r} has {name} of 0..{count - 1}; got {index}", field=name)
    return neuron


def _index(neuron: Neuron) -> tuple[int, ...]:
    return (neuron.channel,) if neuron.y is None or neuron.x is None else (neuron.channel, neuron.y, neuron.x)
