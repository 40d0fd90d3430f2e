"""A batch through a network by torch: one recorded forward pass, from which every method takes what it needs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from convlens.errors import RequestError, UnsupportedModelError
from convlens.explain.captured_forward import Replay, computed, run_network
from convlens.explain.forward import Forward, MakeImages, OnStep
from convlens.explain.input_gradient import LayerCut, differentiating, input_gradient, require_reached
from convlens.explain.network_sweeps import torch_sweeps
from convlens.explain.onnx_forward import graph_outputs, scores_graph
from convlens.explain.scores import probabilities, require_finite, scores_of
from convlens.explain.sweeps.autotune import SweepAutotuner
from convlens.gallery import Gallery
from convlens.instrument import (
    ReluRule,
    RuledRelus,
    arithmetic,
    fast_convolutions,
    find_layer,
    remembers_places,
    require_eval,
    require_relu_network,
    tapped,
)
from convlens.models import Classifier, is_scripted
from convlens.runtime.torch_runtime import CPU_BATCH, TorchRuntime, as_input, embedding, widened
from convlens.types import Floats, Ints, ScoreKind, no_op

_BATCH = 64  # images of a pass without gradients on a GPU
# Images of one pass of Grad-CAM on two CPU cores: of 16 the default model took 1.5 times as long, ResNet-50 1.04.
_CPU_BATCH = 4

_SCRIPTED = ", for it is scripted or traced, and what flows through such a layer cannot be caught"


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
            precision=classifier.precision,
        )
        self.classifier = classifier
        with arithmetic(classifier.precision, classifier.device):
            self._shared = _SharedPass(classifier, self.x_NCHW)

    def compute(self) -> None:
        _ = self._shared.logits_NK

    def record(self) -> None:
        self._shared.record()

    def release(self) -> None:
        self._shared.release()

    @property
    def logits_NK(self) -> Floats:
        return require_finite(self._shared.logits_NK[self._rows])

    @property
    def embedding_ND(self) -> Floats:
        embedding_ND = self._shared.embedding_ND[self._rows]
        if not embedding_ND.shape[1]:
            raise UnsupportedModelError(
                "this network shows no layer whose input is an embedding"
                f"{_SCRIPTED if is_scripted(self.classifier.module) else ''}; name one: embedding_layer=",
                field="method",
            )
        return embedding_ND

    def outputs_of(self, x_NCHW: Tensor | Floats) -> Floats:
        runtime = scores_graph(self.classifier.graphs) or self._torch_runtime
        return require_finite(runtime.logits(x_NCHW))

    def outputs_in_parts(self, count: int, images: MakeImages) -> Generator[Floats]:
        graph = scores_graph(self.classifier.graphs)
        if graph is not None:
            return graph_outputs(graph, count, images)
        size = _BATCH if self.device.type == "cuda" else CPU_BATCH
        runtime, firsts = self._torch_runtime, range(0, count, size)
        return (require_finite(runtime.logits(images(n, min(n + size, count)))) for n in firsts)

    @property
    def _torch_runtime(self) -> TorchRuntime:
        classifier = self.classifier
        return TorchRuntime(
            classifier.module,
            self.spec.embedding_layer,
            classifier.device,
            batch=_BATCH,
            precision=classifier.precision,
        )

    def scores(self, target_N: Ints, kind: ScoreKind) -> Floats:
        if not self.spec.classes:
            return super().scores(target_N, kind)
        logits_NK = require_finite(self._shared.scored_NK[self._rows])
        return scores_of(logits_NK, kind, self.spec.activation)[np.arange(len(self)), target_N]

    def gradient(self, rule: ReluRule, target_N: Ints, *, score: ScoreKind = "logit", method: str) -> Tensor:
        return self._shared.gradient(rule, self._rows, target_N, score, method)

    @property
    def remembers_places(self) -> bool:
        return self._shared.remembers_places

    def layer_gradient(self, layer: str, target_N: Ints) -> tuple[Tensor, Tensor]:
        """By a forward pass of its own. A layer that runs several times counts by its last run."""
        whole = len(self._rows) == len(self._shared)
        return self._shared.layer_gradient(
            layer, self.x_NCHW, target_N, keep=whole and (np.diff(self._rows) == 1).all()
        )

    @property
    def counts(self) -> Mapping[str, int]:
        shared = self._shared
        return {"forwards": shared.forwards, "backwards": shared.backwards, "relu_calls": shared.relu_calls}


class _SharedPass:
    """The forward pass itself, made once for all rows of a batch.

    On a GPU it is replayed where a batch of this size was captured before (``runtime/cuda_graphs.py``).
    """

    def __init__(self, classifier: Classifier, x_NCHW: Tensor) -> None:
        self._classifier = classifier
        self._activation = classifier.spec.activation
        self._x_NCHW = x_NCHW
        self._graph: tuple[Tensor, Tensor] | None = None
        self._logits_NK: Floats | None = None
        self._graph_logits_NK: Floats | None = None
        self._embedding_ND: Floats | None = None
        self._guarded = False
        self._replay = Replay(classifier, x_NCHW) if x_NCHW.is_cuda else None
        self.rules = RuledRelus()
        self.forwards = 0
        self.backwards = 0

    @property
    def relu_calls(self) -> int:
        return self.rules.calls or (self._replay.relu_calls if self._replay else 0)

    @property
    def logits_NK(self) -> Floats:
        if self._logits_NK is None:
            with self._arithmetic():
                outputs = self._replay.forward() if self._replay else None
                if outputs is not None:
                    self._keep(*outputs)
                else:
                    with torch.no_grad():
                        self._forward(self._x_NCHW)
        return computed(self._logits_NK)

    @property
    def scored_NK(self) -> Floats:
        """The logits by whatever has computed them, else by the classifier's graph where it has one."""
        # Before a sweep: after a forward pass by torch its threads would spin, on the cores that the sweep needs. Where
        # other work ran on them too, that pass took ten times as long as one whose threads sleep (OMP_WAIT_POLICY).
        if self._logits_NK is None and self._graph_logits_NK is None and self._classifier.graphs:
            runtime = scores_graph(self._classifier.graphs)
            self._graph_logits_NK = runtime.logits(self._x_NCHW) if runtime else None
        return self.logits_NK if self._graph_logits_NK is None else self._graph_logits_NK

    @property
    def embedding_ND(self) -> Floats:
        _ = self.logits_NK
        return computed(self._embedding_ND)

    def record(self) -> None:
        if self._graph is not None or (self._replay and self._replay.recorded):
            return
        with self._arithmetic():
            outputs = self._replay.record() if self._replay else None
            if outputs is not None:
                self._keep(*outputs)
            else:
                self._record_graph()

    def release(self) -> None:
        self._graph = None

    def gradient(self, rule: ReluRule, rows: Ints, target_N: Ints, kind: ScoreKind, method: str) -> Tensor:
        with self._arithmetic():
            self.record()
            if kind == "logit" and self._replay and self._replay.recorded:
                self._guard(rule, self._replay.recorded_logits_NK, method)
                return self._grouped(rows, target_N, partial(self._replay.gradient, rule))
            if self._graph is None:
                self._record_graph()
            x_NCHW, logits_NK = computed(self._graph)
            self._guard(rule, logits_NK, method)
            return self._grouped(rows, target_N, partial(self._backward, rule, x_NCHW, logits_NK, kind, method))

    @property
    def remembers_places(self) -> bool:
        if self._graph is not None:
            return remembers_places(self._graph[1])
        return self._replay is None or not self._replay.recorded or remembers_places(self._replay.recorded_logits_NK)

    def _arithmetic(self) -> AbstractContextManager[None]:
        return arithmetic(self._classifier.precision, self._classifier.device)

    def __len__(self) -> int:
        return len(self._x_NCHW)

    def layer_gradient(self, layer: str, x_NCHW: Tensor, target_N: Ints, *, keep: bool) -> tuple[Tensor, Tensor]:
        """``keep``: the rows are all of the batch, so the logits serve whoever asks for them next."""
        if not layer:
            scripted = _SCRIPTED if is_scripted(self._classifier.module) else ""
            raise UnsupportedModelError(
                f"grad_cam needs a layer that gives a map, and this network shows none{scripted}; use saliency or "
                "occlusion",
                field="method",
            )
        targets: Tensor = torch.as_tensor(target_N, device=x_NCHW.device)
        at_once = len(x_NCHW) if x_NCHW.is_cuda else _CPU_BATCH
        starts = range(0, len(x_NCHW), at_once)
        parts = [self._layer_gradient(layer, x_NCHW[n : n + at_once], targets[n : n + at_once]) for n in starts]
        maps, gradient, logits_NK, embedding_ND = (torch.cat(each) for each in zip(*parts, strict=True))
        if keep and self._logits_NK is None:
            self._keep(logits_NK, embedding_ND)
        else:
            self.forwards += 1
        self.backwards += 1
        return maps, gradient

    def _layer_gradient(self, layer: str, x_NCHW: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The layer's maps, the gradient in them, logits and embeddings."""
        cut = LayerCut(pixels=2)
        logits_NK, embedding_ND = self._cut_forward(layer, x_NCHW, cut)
        if cut.maps is None and isinstance(cut.other, Tensor) and cut.other.ndim == 4:
            cut = LayerCut(pixels=1)
            logits_NK, embedding_ND = self._cut_forward(layer, x_NCHW, cut)
        maps = cut.require_maps(layer)
        with torch.enable_grad():
            score = logits_NK.gather(1, targets[:, None]).sum()
        gradient = input_gradient(
            score, maps, module=self._classifier.module, method="grad_cam", place=f"maps of layer {layer!r}"
        )
        return widened(maps.detach()), widened(gradient), logits_NK.detach(), embedding_ND

    def _cut_forward(self, layer: str, x_NCHW: Tensor, cut: LayerCut) -> tuple[Tensor, Tensor]:
        """Logits and embeddings of a forward pass whose graph begins behind the layer."""
        embedding_layer = self._classifier.spec.embedding_layer
        try:
            with (
                torch.enable_grad(),
                fast_convolutions(x_NCHW.device),
                tapped(self._classifier.module, inputs=[embedding_layer]) as tap,
            ):
                find_layer(tap.module, layer).register_forward_hook(cut)
                logits_NK: Tensor = tap.module(x_NCHW.detach())
        except RequestError as error:
            error.field = f"options.{error.field}"  # here the layer is an option of the method
            raise
        return logits_NK, embedding(tap.inputs.pop(embedding_layer, None), len(x_NCHW)).detach()

    def _guard(self, rule: ReluRule, logits_NK: Tensor, method: str) -> None:
        if rule != "plain" and not self._guarded:
            require_reached(logits_NK, method=method)
            require_relu_network(logits_NK, method=method)
            self._guarded = True

    def _grouped(self, rows: Ints, target_N: Ints, gradient: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``gradient`` of rows and targets, group by group, in the order of ``rows``."""
        device = self._x_NCHW.device
        groups, parts = list(_without_repeats(rows)), []
        for group in groups:
            self.backwards += 1
            parts.append(
                gradient(torch.as_tensor(rows[group], device=device), torch.as_tensor(target_N[group], device=device))
            )
        if len(parts) == 1:
            return parts[0]
        order = np.argsort(np.concatenate(groups))
        return torch.cat(parts)[torch.as_tensor(order, device=device)]

    def _backward(
        self,
        rule: ReluRule,
        x_NCHW: Tensor,
        logits_NK: Tensor,
        kind: ScoreKind,
        method: str,
        rows: Tensor,
        targets: Tensor,
    ) -> Tensor:
        with torch.enable_grad():
            # One backward pass for all rows: a row's logit does not depend on the other rows, so neither does its
            # gradient in the sum.
            scores_NK = probabilities(logits_NK, self._activation) if kind == "probability" else logits_NK
            score = scores_NK[rows, targets].sum()
        self.rules.set(rule)
        # keep: further rules and targets go back through the same graph.
        return input_gradient(score, x_NCHW, module=self._classifier.module, method=method, keep=True)[rows]

    def _record_graph(self) -> None:
        # A clone, so that the caller's tensor keeps its own requires_grad.
        x_NCHW = self._x_NCHW.detach().clone().requires_grad_()
        with differentiating(), torch.enable_grad(), self.rules:
            self._graph = x_NCHW, self._forward(x_NCHW)

    def _forward(self, x_NCHW: Tensor) -> Tensor:
        logits_NK, embedding_ND = run_network(self._classifier.module, self._classifier.spec.embedding_layer, x_NCHW)
        self._keep(logits_NK, embedding_ND)
        return logits_NK

    def _keep(self, logits_NK: Tensor, embedding_ND: Tensor) -> None:
        self.forwards += 1
        self._logits_NK = logits_NK.detach().cpu().numpy()
        self._embedding_ND = embedding_ND.cpu().numpy()


def _without_repeats(rows: Ints) -> Iterator[Ints]:
    """Positions in ``rows``, in groups that hold no row twice: one backward pass would add up its gradients."""
    occurrence_N = np.array([np.count_nonzero(rows[:n] == row) for n, row in enumerate(rows)])
    for occurrence in np.unique(occurrence_N):
        yield np.flatnonzero(occurrence_N == occurrence)
