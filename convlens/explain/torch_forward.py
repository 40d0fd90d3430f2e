"""A batch through a network by torch: one recorded forward pass, from which every method takes what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from convlens.explain.forward import Forward, OnStep
from convlens.explain.scores import require_finite
from convlens.explain.sweeps.autotune import HalfPrecisionScorer, SweepAutotuner
from convlens.explain.sweeps.backends import BatchedSweep, SweepBackend
from convlens.gallery import Gallery
from convlens.instrument import ReluRule, RuledRelus, require_eval, require_relu_network, tapped
from convlens.models import Classifier
from convlens.runtime.torch_runtime import TorchRuntime, as_input, pooled
from convlens.types import Floats, Ints, ScoreKind, Step, no_op

T = TypeVar("T")


class ForwardPass(Forward):
    """A batch through a classifier; otherwise as ``Forward``.

    Logits, embeddings and the gradients by every ReLU rule come from one recorded forward; where no gradient is needed,
    one without a graph serves. ``sweeps`` defaults to ``torch_sweeps(classifier)``. Raises ModelError for a model in
    training mode, and, when scores are read, for one that gives NaN or infinity.
    """

    runtime = "torch"

    def __init__(
        self,
        classifier: Classifier,
        x_NCHW: Tensor | Floats,
        *,
        sweeps: SweepAutotuner | None = None,
        gallery: Gallery | None = None,
        on_step: OnStep = no_op,
    ) -> None:
        require_eval(classifier.module)
        super().__init__(
            classifier.spec,
            classifier.device,
            as_input(x_NCHW, classifier.module, classifier.device),
            sweeps=sweeps or torch_sweeps(classifier),
            gallery=gallery,
            on_step=on_step,
        )
        self.classifier = classifier
        self._shared = _SharedPass(classifier, self.x_NCHW)

    def record(self) -> None:
        self._shared.record()

    def release(self) -> None:
        self._shared.release()

    @property
    def logits_NK(self) -> Floats:
        return require_finite(self._shared.logits_NK[self._rows])

    @property
    def embedding_ND(self) -> Floats:
        return self._shared.embedding_ND[self._rows]

    def gradient(self, rule: ReluRule, target_N: Ints, *, score: ScoreKind = "logit", method: str) -> Tensor:
        return self._shared.gradient(rule, self._rows, target_N, score, method)

    @property
    def counts(self) -> Mapping[str, int]:
        shared = self._shared
        return {"forwards": shared.forwards, "backwards": shared.backwards, "relu_calls": shared.rules.calls}


def torch_sweeps(classifier: Classifier, graphs: Sequence[SweepBackend] = ()) -> SweepAutotuner:
    """The sweep backends of a network: its graphs first, then torch, then torch in half precision."""
    module, device = classifier.module, classifier.device
    runtime = TorchRuntime(module, classifier.spec.embedding_layer, device)
    # ONNX Runtime's forward pass took .20 to .55 of eager torch's.
    half = BatchedSweep(HalfPrecisionScorer(module, device), precision="half")
    return SweepAutotuner([*graphs, BatchedSweep(runtime), half])


class ProgressModule:
    """The network as a function for captum; calls ``on_step`` before each batch with the number of images done.

    What ``on_step`` raises ends the work between two batches. ``total`` is how many there will be, or a few less.
    """

    def __init__(self, forward: ForwardPass, stage: str, total: int) -> None:
        self._module, self._on_step = forward.classifier.module, forward.on_step
        self._stage, self._total = stage, total
        self._done = 0

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        self._on_step(Step(self._stage, min(self._done, self._total), self._total))
        logits_NK: Tensor = self._module(x_NCHW)
        self._done += len(x_NCHW)
        return logits_NK


class _SharedPass:
    """The forward pass itself, made once for all rows of a batch."""

    def __init__(self, classifier: Classifier, x_NCHW: Tensor) -> None:
        self._classifier = classifier
        self._x_NCHW = x_NCHW
        self._graph: tuple[Tensor, Tensor] | None = None
        self._logits_NK: Floats | None = None
        self._embedding_ND: Floats | None = None
        self._guarded = False
        self.rules = RuledRelus()
        self.forwards = 0
        self.backwards = 0

    @property
    def logits_NK(self) -> Floats:
        if self._logits_NK is None:
            with torch.no_grad():
                self._forward(self._x_NCHW)
        return _computed(self._logits_NK)

    @property
    def embedding_ND(self) -> Floats:
        _ = self.logits_NK
        return _computed(self._embedding_ND)

    def record(self) -> None:
        if self._graph is None:
            # A clone, so that the caller's tensor keeps its own requires_grad.
            x_NCHW = self._x_NCHW.detach().clone().requires_grad_()
            with torch.enable_grad(), self.rules:
                self._graph = x_NCHW, self._forward(x_NCHW)

    def release(self) -> None:
        self._graph = None

    def gradient(self, rule: ReluRule, rows: Ints, target_N: Ints, kind: ScoreKind, method: str) -> Tensor:
        self.record()
        x_NCHW, logits_NK = _computed(self._graph)
        if rule != "plain" and not self._guarded:
            require_relu_network(logits_NK, method=method)
            self._guarded = True
        grad_NCHW = torch.empty((len(rows), *x_NCHW.shape[1:]), dtype=x_NCHW.dtype, device=x_NCHW.device)
        for group in _without_repeats(rows):
            grad_NCHW[group] = self._backward(rule, x_NCHW, logits_NK, rows[group], target_N[group], kind)
        return grad_NCHW

    def _backward(
        self, rule: ReluRule, x_NCHW: Tensor, logits_NK: Tensor, rows: Ints, target_N: Ints, kind: ScoreKind
    ) -> Tensor:
        at = torch.as_tensor(rows, device=x_NCHW.device), torch.as_tensor(target_N, device=x_NCHW.device)
        with torch.enable_grad():
            # One backward pass for all rows: a row's logit does not depend on the other rows, so neither does its
            # gradient in the sum.
            score = (logits_NK.softmax(1) if kind == "probability" else logits_NK)[at].sum()
        self.rules.set(rule)
        self.backwards += 1
        # autograd.grad and never backward(): that would compute, and fill, the gradients of all weights as well, and
        # took 2.6 to 5.3 forward passes against 1.9 to 2.1.
        # retain_graph: further rules and targets go back through the same graph.
        (grad_NCHW,) = torch.autograd.grad(score, x_NCHW, retain_graph=True)
        return grad_NCHW[at[0]]

    def _forward(self, x_NCHW: Tensor) -> Tensor:
        layer = self._classifier.spec.embedding_layer
        with tapped(self._classifier.module, inputs=[layer]) as tap:
            logits_NK: Tensor = tap.module(x_NCHW)
        self.forwards += 1
        self._logits_NK = logits_NK.detach().cpu().numpy()
        # pop: the tap and its tree hold each other until the garbage collector comes by, and so would the whole graph.
        self._embedding_ND = pooled(tap.inputs.pop(layer).detach()).cpu().numpy()
        return logits_NK


def _without_repeats(rows: Ints) -> Iterator[Ints]:
    """Positions in ``rows``, in groups that hold no row twice: one backward pass would add up its gradients."""
    occurrence_N = np.array([np.count_nonzero(rows[:n] == row) for n, row in enumerate(rows)])
    for occurrence in np.unique(occurrence_N):
        yield np.flatnonzero(occurrence_N == occurrence)


def _computed(value: T | None) -> T:
    assert value is not None, "read before the forward pass was made"
    return value
