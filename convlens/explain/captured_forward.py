"""A network's forward pass, and how a batch on a GPU uses the passes that were captured for its size."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from convlens.instrument import ReluRule, fast_convolutions, tapped
from convlens.models import Classifier
from convlens.runtime.cuda_graphs import CapturedPass, CapturedPasses, captured_passes
from convlens.runtime.torch_runtime import embedding

T = TypeVar("T")


class Replay:
    """One batch's use of its network's captured passes; ``forward`` and ``record`` give None where there are none."""

    def __init__(self, classifier: Classifier, x_NCHW: Tensor) -> None:
        self._x_NCHW = x_NCHW
        self._passes = captured_of(classifier)
        self._captured: CapturedPass | None = None
        self._searched = False
        self.recorded = False

    def forward(self) -> tuple[Tensor, Tensor] | None:
        return self._use(lambda captured: captured.forward(self._x_NCHW))

    def record(self) -> tuple[Tensor, Tensor] | None:
        outputs = self._use(lambda captured: captured.record(self._x_NCHW, owner=self))
        self.recorded = outputs is not None
        return outputs

    def gradient(self, rule: ReluRule, rows: Tensor, targets: Tensor) -> Tensor:
        with computed(self._passes).lock:
            return computed(self._captured).gradient(rule, self._x_NCHW, rows, targets, owner=self)

    @property
    def relu_calls(self) -> int:
        return self._captured.relu_calls if self._captured and self.recorded else 0

    @property
    def recorded_logits_NK(self) -> Tensor:
        return computed(self._captured).recorded_logits_NK

    def _use(self, use: Callable[[CapturedPass], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
        if self._passes is None:
            return None
        with self._passes.lock:
            if not self._searched:
                self._captured, self._searched = self._passes.find(self._x_NCHW), True
            return use(self._captured) if self._captured else None


def captured_of(classifier: Classifier) -> CapturedPasses | None:
    """The captured passes of a network on a GPU, kept as long as its module lives."""
    layer, reference = classifier.spec.embedding_layer, weakref.ref(classifier.module)

    def network(x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        # By a weak reference, or the captured passes would keep the module, and it them.
        return run_network(computed(reference()), layer, x_NCHW)

    return captured_passes(classifier.module, lambda: CapturedPasses(network, classifier.spec.classes))


def run_network(module: nn.Module, layer: str, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K), and embeddings (N, D) without a gradient."""
    with fast_convolutions(x_NCHW.device), tapped(module, inputs=[layer]) as tap:
        logits_NK: Tensor = tap.module(x_NCHW)
    # pop: the tap and its tree hold each other until the garbage collector comes by, and so would the whole graph.
    return logits_NK, embedding(tap.inputs.pop(layer, None), len(x_NCHW)).detach()


def computed(value: T | None) -> T:
    """The value, which somebody must have computed before."""
    assert value is not None, "read before the forward pass was made"
    return value
