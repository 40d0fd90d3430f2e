"""A batch that went through a model, as the explanation methods see it, whichever runtime made the pass."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from convlens.errors import ModelError, TargetError
from convlens.explain.scores import scores_of
from convlens.explain.sweeps.autotune import SweepAutotuner
from convlens.gallery import Gallery
from convlens.instrument import ReluRule, arithmetic_of
from convlens.runtime.torch_runtime import to_host
from convlens.types import ArithmeticPrecision, Attribution, Floats, Ints, Meta, ModelSpec, ScoreKind, Step

OnStep = Callable[[Step], None]
MakeImages = Callable[[int, int], Tensor | Floats]


class Forward(ABC):
    """A batch of images and, computed at first use, their logits, embeddings and gradients.

    ``x_NCHW`` is float, normalised as ``spec`` says. ``sweeps`` makes occlusion sweeps, ``gallery`` is searched for
    neighbours, ``on_step`` is called with the progress of long work and ends that work by raising. ``runtime`` is the
    name that results carry, ``precision`` that of the model, as for ``convlens.load``.
    """

    runtime: str

    def __init__(
        self,
        spec: ModelSpec,
        device: torch.device,
        x_NCHW: Tensor,
        *,
        sweeps: SweepAutotuner,
        gallery: Gallery | None,
        on_step: OnStep,
        precision: ArithmeticPrecision | None,
    ) -> None:
        self.spec = spec
        self.device = device
        self.x_NCHW = x_NCHW
        self.sweeps = sweeps
        self.gallery = gallery
        self.on_step = on_step
        self.precision = precision
        self._rows = np.arange(len(x_NCHW))

    def select(self, rows: Sequence[int]) -> Self:
        """These rows alone, in this order, sharing the one forward pass of the whole batch."""
        # Not through __init__: subclasses share their pass by the attributes that are copied here.
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._rows = self._rows[np.asarray(rows)]
        part.x_NCHW = self.x_NCHW[torch.as_tensor(rows, device=self.x_NCHW.device)]
        return part

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def remembers_places(self) -> bool:
        """Whether gradients go to the places where maxima were; True where that cannot be told, as of graphs.

        To be read after a gradient.
        """
        return True

    @property
    def explains_classes(self) -> bool:
        """Whether results are of classes; where the network has none, only what needs none can be explained."""
        return True

    @abstractmethod
    def compute(self) -> None:
        """Make the forward pass now, whatever it gives."""

    @abstractmethod
    def record(self) -> None:
        """Prepare for gradients, which takes a forward pass of its own where one without a graph came before."""

    @abstractmethod
    def release(self) -> None:
        """Free what only gradients need; a later gradient makes it again."""

    @property
    @abstractmethod
    def logits_NK(self) -> Floats:
        """ModelError where the model gave NaN or infinity."""

    @property
    @abstractmethod
    def embedding_ND(self) -> Floats: ...

    @abstractmethod
    def gradient(self, rule: ReluRule, target_N: Ints, *, score: ScoreKind = "logit", method: str) -> Tensor | Floats:
        """d score(target) / d x (N, C, H, W), with ``rule`` at every ReLU; UnsupportedModelError where there is none.

        ``method`` is the name that errors mention.
        """

    @abstractmethod
    def layer_gradient(self, layer: str, target_N: Ints) -> tuple[Tensor, Tensor]:
        """A layer's maps (N, C, h, w) for these rows, and d logit(target) / d maps, on this batch's device.

        RequestError for a layer that is not there, does not run or gives no maps.
        """

    @property
    @abstractmethod
    def counts(self) -> Mapping[str, int]:
        """``forwards`` and ``backwards`` made so far, and ``relu_calls`` met in them."""

    @property
    def arithmetic(self) -> str:
        """What a pass multiplies in: float32, tf32, bf16, half or float64."""
        if self.x_NCHW.dtype == torch.float64:
            return "float64"
        return arithmetic_of(self.precision, self.device)

    @abstractmethod
    def outputs_of(self, x_NCHW: Tensor | Floats) -> Floats:
        """What the network gives for other images: logits (N, K), or the embeddings (N, D) of one without classes."""

    @abstractmethod
    def outputs_in_parts(self, count: int, images: MakeImages) -> Generator[Floats]:
        """As ``outputs_of`` for ``count`` images, in order and in parts of the size that the runtime prefers.

        ``images(first, last)`` makes the images first..last-1 when their turn comes, perhaps in another thread and
        several parts at once.
        """

    def targets(self, target_N: Sequence[int] | Ints | None) -> Ints:
        """The classes to explain, one per row; None means the predicted ones. TargetError for one out of range.

        A network without classes has -1 for targets.
        """
        if not self.spec.classes:
            if target_N is not None and (np.asarray(target_N) >= 0).any():
                raise TargetError("this network gives embeddings and has no classes; leave target out", field="target")
            return np.full(len(self), -1)
        if target_N is None:  # never class 0, which would explain whatever stands first among the labels
            return np.asarray(self.logits_NK.argmax(axis=1))
        indices_N, classes = np.asarray(target_N), self.spec.classes
        if indices_N.shape != (len(self),) or indices_N.dtype.kind not in "iu":
            raise TargetError(f"{len(self)} images need as many integer targets; got {target_N!r}", field="target")
        if ((indices_N < 0) | (indices_N >= classes)).any():
            raise TargetError(
                f"target {indices_N.tolist()} is out of range; classes are 0..{classes - 1}", field="target"
            )
        return indices_N.astype(np.int64)  # torch takes an index of unsigned bytes for a mask

    def scores(self, target_N: Ints, kind: ScoreKind) -> Floats:
        """The target's logit or probability, per row; without classes an image's similarity to itself, 1."""
        if not self.spec.classes:
            return np.ones(len(self))
        return scores_of(self.logits_NK, kind, self.spec.activation)[np.arange(len(self)), target_N]

    def meta(
        self,
        kind: ScoreKind,
        *,
        started: float,
        runtime: str | None = None,
        precision: str = "",
        ruled: bool = False,
        warnings: tuple[str, ...] = (),
        **more: Any,
    ) -> Meta:
        """How the result came about; ``started`` is a time.perf_counter(), ``ruled`` whether ReLU rules were used."""
        counts = self.counts
        return Meta(
            weights_sha256=self.spec.weights_sha256,
            target_kind=kind,
            input_space="normalised",
            dtype=str(self.x_NCHW.dtype).removeprefix("torch."),
            device=str(self.device),
            runtime=runtime or self.runtime,
            precision=precision or self.arithmetic,
            relu_calls_seen=counts["relu_calls"] if ruled else 0,
            relu_calls_ruled=counts["relu_calls"] if ruled else 0,
            forwards=counts["forwards"],
            backwards=counts["backwards"],
            seconds=time.perf_counter() - started,
            warnings=(*self.spec.warnings, *warnings),
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
        finite = (
            torch.isfinite(values_NCHW).all() if isinstance(values_NCHW, Tensor) else np.isfinite(values_NCHW).all()
        )
        values = to_host(values_NCHW) if isinstance(values_NCHW, Tensor) else np.asarray(values_NCHW)
        if not finite:
            raise ModelError(f"{method} gave NaN or infinity for this image; the weights may be damaged")
        score_N = self.scores(target_N, "probability" if meta.target_kind == "probability" else "logit")
        return Attribution(values, score_N, target_N, method, dict(options), meta, dict(extras or {}))
