"""One forward pass of a batch, from which every explainer takes what it needs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from convlens.errors import ModelError, RequestError, TargetError
from convlens.gallery import Gallery
from convlens.instrument import ReluRule, RuledRelus, refuse_unruled, require_eval, tapped
from convlens.models import Classifier
from convlens.runtime.torch_ import TorchRuntime, as_input, pooled
from convlens.types import Attribution, Floats, Ints, Meta, ScoreKind

T = TypeVar("T")


class Scorer(Protocol):
    """Whatever turns normalised pictures (N, C, H, W) into logits (N, K) without gradients."""

    @property
    def name(self) -> str: ...

    def logits(self, x_NCHW: Tensor | Floats) -> Floats: ...


class ForwardPass:
    """A batch of normalised pictures and, computed when first asked for, what the network makes of them.

    Logits, embeddings and the gradients by every ReLU rule come from one recorded forward; without a gradient method
    a forward without a graph serves. ``select`` gives some of the rows, sharing that forward.

    ``x_NCHW`` is float, normalised as the model's spec says. ``scorer`` runs occlusion sweeps (default: the model
    itself by torch), ``gallery`` holds the pictures that neighbours are sought in. Raises ModelError for a model in
    training mode, and, when scores are read, for one that gives NaN or infinity.
    """

    def __init__(
        self,
        classifier: Classifier,
        x_NCHW: Tensor | Floats,
        *,
        scorer: Scorer | None = None,
        gallery: Gallery | None = None,
    ) -> None:
        require_eval(classifier.module)
        self.classifier = classifier
        self.x_NCHW = as_input(x_NCHW, classifier.module, classifier.device)
        self.scorer: Scorer = scorer or TorchRuntime(
            classifier.module, classifier.spec.embedding_layer, classifier.device
        )
        self.gallery = gallery
        self._shared = _Shared(classifier, self.x_NCHW)
        self._rows = np.arange(len(self.x_NCHW))

    def select(self, rows: Sequence[int]) -> ForwardPass:
        """Some of the rows, in the given order, sharing the forward that was or will be made for all."""
        part = object.__new__(ForwardPass)
        part.__dict__.update(self.__dict__)
        part._rows = self._rows[np.asarray(rows)]
        part.x_NCHW = self.x_NCHW[torch.as_tensor(rows, device=self.x_NCHW.device)]
        return part

    def __len__(self) -> int:
        return len(self._rows)

    def record(self) -> None:
        """Make the forward with its graph now, because gradients will be asked for."""
        self._shared.record()

    @property
    def logits_NK(self) -> Floats:
        return finite(self._shared.logits_NK[self._rows])

    @property
    def embedding_ND(self) -> Floats:
        return self._shared.embedding_ND[self._rows]

    def targets(self, given: Sequence[int] | Ints | None) -> Ints:
        """The class to explain in each row: as given, or the predicted one. TargetError for one out of range."""
        if given is None:
            return np.asarray(self.logits_NK.argmax(axis=1))
        target_N, classes = np.asarray(given), self.classifier.spec.classes
        if target_N.shape != (len(self),) or target_N.dtype.kind not in "iu":
            raise TargetError(f"{len(self)} pictures need as many integer targets; got {given!r}", field="target")
        if ((target_N < 0) | (target_N >= classes)).any():
            raise TargetError(
                f"target {target_N.tolist()} is out of range; classes are 0..{classes - 1}", field="target"
            )
        return target_N.astype(np.int64)  # torch takes an index of unsigned bytes for a mask

    def scores(self, target_N: Ints, kind: ScoreKind) -> Floats:
        """The target's logit or probability, per row."""
        return scores_of(self.logits_NK, kind)[np.arange(len(self)), target_N]

    def gradient(self, rule: ReluRule, target_N: Ints, *, score: ScoreKind = "logit", method: str) -> Tensor:
        """d score(target) / d x, (N, C, H, W), the rule applied at every ReLU; UnsupportedModelError if it has none."""
        return self._shared.gradient(rule, self._rows, target_N, score, method)

    def meta(
        self, kind: ScoreKind, *, started: float, runtime: str = "torch", ruled: bool = False, **more: Any
    ) -> Meta:
        """How the result at hand came about; ``started`` is a time.perf_counter(), ``ruled``: ReLU rules were used."""
        return Meta(
            weights_sha256=self.classifier.spec.weights_sha256,
            target_kind=kind,
            input_space="normalised",
            dtype=str(self.x_NCHW.dtype).removeprefix("torch."),
            device=str(self.classifier.device),
            runtime=runtime,
            relu_calls_seen=self._shared.relu_calls if ruled else 0,
            relu_calls_ruled=self._shared.relu_calls if ruled else 0,
            forwards=self._shared.forwards,
            backwards=self._shared.backwards,
            seconds=time.perf_counter() - started,
            **more,
        )

    def attribution(
        self,
        method: str,
        values_NCHW: Tensor | Floats,
        target_N: Ints,
        options: Mapping[str, Any],
        meta: Meta,
        extras: Mapping[str, Floats] | None = None,
    ) -> Attribution:
        """The result of a method for these rows; ModelError where the values are not finite."""
        values = values_NCHW.detach().cpu().numpy() if isinstance(values_NCHW, Tensor) else np.asarray(values_NCHW)
        if not np.isfinite(values).all():
            raise ModelError(f"{method} gave NaN or infinity for this picture; the weights may be damaged")
        score_N = self.scores(target_N, meta.target_kind)
        return Attribution(values, score_N, target_N, method, dict(options), meta, dict(extras or {}))


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

    def gradient(self, rule: ReluRule, rows: Ints, target_N: Ints, kind: ScoreKind, method: str) -> Tensor:
        self.record()
        x, logits_NK = _require(self._graph)
        if rule != "plain" and not self._checked:
            refuse_unruled(logits_NK, method=method)
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
        self._embedding_ND = pooled(tap.inputs[layer].detach()).cpu().numpy()
        return logits_NK


def _turns(rows: Ints) -> Iterator[Ints]:
    """Positions in ``rows``, in groups that hold no row twice: one backward pass would add up its gradients."""
    turn_N = np.array([np.count_nonzero(rows[:n] == row) for n, row in enumerate(rows)])
    for turn in np.unique(turn_N):
        yield np.flatnonzero(turn_N == turn)


def finite(logits_NK: Floats) -> Floats:
    """The logits, or ModelError where the model gave NaN or infinity."""
    if not np.isfinite(logits_NK).all():
        raise ModelError("the model's scores are NaN or infinite for this picture; its weights may be damaged")
    return logits_NK


def scores_of(logits_NK: Floats, kind: ScoreKind) -> Floats:
    """Logits as they are, or their softmax."""
    if kind == "logit":
        return logits_NK
    if kind != "probability":
        raise RequestError(f"no score {kind!r}; there are: logit, probability", field="options.score")
    shifted = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _require(value: T | None) -> T:
    assert value is not None, "read before the forward pass was made"
    return value
