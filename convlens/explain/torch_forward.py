"""A network handed to captum that tells how far the work has come, and so can be stopped between two batches.

A batch through a network by torch: one forward pass, from which every explainer takes what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from convlens.explain.forward import Forward, OnStep
from convlens.explain.scores import finite
from convlens.explain.sweeps.autotune import HalfTorch, SweepAutotuner
from convlens.explain.sweeps.backends import BatchedSweep, SweepBackend
from convlens.gallery import Gallery
from convlens.instrument import ReluRule, RuledRelus, require_eval, require_relu_network, tapped
from convlens.models import Classifier
from convlens.runtime.torch_runtime import TorchRuntime, as_input, pooled
from convlens.types import Floats, Ints, ScoreKind, Step, no_op


class Watched:
    """The module of a forward pass as a function: before each batch it tells ``on_step`` how many pictures are done.

    What ``on_step`` raises ends the work. ``total`` is how many there will be, or a few less.
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


T = TypeVar("T")


class ForwardPass(Forward):
    """A batch through a classifier; otherwise as ``Forward``.

    Logits, embeddings and the gradients by every ReLU rule come from one recorded forward; without a gradient method
    a forward without a graph serves. ``sweeps`` defaults to the model itself, by torch. Raises ModelError for a model
    in training mode, and, when scores are read, for one that gives NaN or infinity.
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
            sweeps=sweeps or sweeps_of(classifier),
            gallery=gallery,
            on_step=on_step,
        )
        self.classifier = classifier
        self._shared = _Shared(classifier, self.x_NCHW)

    def record(self) -> None:
        self._shared.record()

    def release(self) -> None:
        self._shared.release()

    @property
    def logits_NK(self) -> Floats:
        return finite(self._shared.logits_NK[self._rows])

    @property
    def embedding_ND(self) -> Floats:
        return self._shared.embedding_ND[self._rows]

    def gradient(self, rule: ReluRule, target_N: Ints, *, score: ScoreKind = "logit", method: str) -> Tensor:
        return self._shared.gradient(rule, self._rows, target_N, score, method)

    @property
    def counts(self) -> Mapping[str, int]:
        shared = self._shared
        return {"forwards": shared.forwards, "backwards": shared.backwards, "relu_calls": shared.relu_calls}


def sweeps_of(classifier: Classifier, graphs: Sequence[SweepBackend] = ()) -> SweepAutotuner:
    """The ways of sweeping with this model: its graphs, which are faster, then torch, and torch in half precision."""
    module, device = classifier.module, classifier.device
    runtime = TorchRuntime(module, classifier.spec.embedding_layer, device)
    return SweepAutotuner([*graphs, BatchedSweep(runtime), BatchedSweep(HalfTorch(module, device), precision="half")])


class _Shared:
    """The forward itself, made once for all rows."""

    def __init__(self, classifier: Classifier, x_NCHW: Tensor) -> None:
        self._classifier = classifier
        self._x_NCHW = x_NCHW
        self._graph: tuple[Tensor, Tensor] | None = None
        self._logits_NK: Floats | None = None
        self._embedding_ND: Floats | None = None
        self._rules = RuledRelus()
        self._checked = False
        self.forwards = 0
        self.backwards = 0

    @property
    def relu_calls(self) -> int:
        return self._rules.calls

    @property
    def logits_NK(self) -> Floats:
        if self._logits_NK is None:
            with torch.no_grad():
                self._forward(self._x_NCHW)
        return _require(self._logits_NK)

    @property
    def embedding_ND(self) -> Floats:
        _ = self.logits_NK
        return _require(self._embedding_ND)

    def record(self) -> None:
        if self._graph is None:
            x = self._x_NCHW.detach().clone().requires_grad_()
            with torch.enable_grad(), self._rules:
                self._graph = x, self._forward(x)

    def release(self) -> None:
        self._graph = None

    def gradient(self, rule: ReluRule, rows: Ints, target_N: Ints, kind: ScoreKind, method: str) -> Tensor:
        self.record()
        x, logits_NK = _require(self._graph)
        if rule != "plain" and not self._checked:
            require_relu_network(logits_NK, method=method)
            self._checked = True
        grad = torch.empty((len(rows), *x.shape[1:]), dtype=x.dtype, device=x.device)
        for turn in _turns(rows):
            grad[turn] = self._backward(rule, x, logits_NK, rows[turn], target_N[turn], kind)
        return grad

    def _backward(
        self, rule: ReluRule, x: Tensor, logits_NK: Tensor, rows: Ints, target_N: Ints, kind: ScoreKind
    ) -> Tensor:
        at = torch.as_tensor(rows, device=x.device), torch.as_tensor(target_N, device=x.device)
        with torch.enable_grad():
            score = (logits_NK.softmax(1) if kind == "probability" else logits_NK)[at].sum()
        self._rules.set(rule)
        self.backwards += 1
        # autograd.grad and never backward(): the latter would fill, and compute, the gradients of all weights.
        (grad,) = torch.autograd.grad(score, x, retain_graph=True)
        return grad[at[0]]

    def _forward(self, x: Tensor) -> Tensor:
        layer = self._classifier.spec.embedding_layer
        with tapped(self._classifier.module, inputs=[layer]) as tap:
            logits_NK: Tensor = tap.module(x)
        self.forwards += 1
        self._logits_NK = logits_NK.detach().cpu().numpy()
        # pop: the tap and its tree hold each other until the garbage collector comes by, and so would the whole graph.
        self._embedding_ND = pooled(tap.inputs.pop(layer).detach()).cpu().numpy()
        return logits_NK


def _turns(rows: Ints) -> Iterator[Ints]:
    """Positions in ``rows``, in groups that hold no row twice: one backward pass would add up its gradients."""
    turn_N = np.array([np.count_nonzero(rows[:n] == row) for n, row in enumerate(rows)])
    for turn in np.unique(turn_N):
        yield np.flatnonzero(turn_N == turn)


def _require(value: T | None) -> T:
    assert value is not None, "read before the forward pass was made"
    return value
