"""One image's part of an evaluation: every method's map of it, and what the metrics say of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from convlens import image
from convlens.errors import ConvLensError
from convlens.evaluation.baselines import baseline_map
from convlens.evaluation.perturbation import CurveKind, CurveProtocol, perturbation_curves
from convlens.evaluation.relevance import pixel_order, relevance
from convlens.explain import ForwardPass, GraphForward, GraphModel, get
from convlens.explain.forward import Forward, OnStep
from convlens.explain.scores import scores_of
from convlens.models import Classifier
from convlens.types import Attribution, Floats, Ints, Step, no_op

Record = dict[str, Any]
_DIGITS = 7  # of a curve's values in a record: as many as float32 has
_CURVES: tuple[CurveKind, ...] = ("insertion", "deletion")


@dataclass(frozen=True)
class EvaluationPlan:
    """What to measure on each image; ``methods`` are names with their options."""

    methods: Mapping[str, Mapping[str, Any]]
    baselines: tuple[str, ...]
    metrics: tuple[str, ...]
    protocol: CurveProtocol = field(default_factory=CurveProtocol)
    seed: int = 0


@dataclass(frozen=True)
class Picture:
    """One image to evaluate: its file, its true class (None: unknown) and whether costly metrics are measured on it.

    ``target`` is the class to explain, None for the predicted one.
    """

    id: str
    path: Path
    true_class: int | None = None
    target: int | None = None
    costly: bool = False


@dataclass(frozen=True)
class _Map:
    """A method's or a baseline's map of one image, and all that metrics may ask about it."""

    forward: Forward
    target: int
    values_CHW: Floats
    map_HW: Floats
    order: Ints
    explain: Callable[[Tensor | Floats], Floats] | None


class PictureEvaluator:
    """Evaluates the methods of a plan on one image after another; ``on_step`` gets the method that is worked on."""

    def __init__(self, model: Classifier | GraphModel, plan: EvaluationPlan, *, on_step: OnStep = no_op) -> None:
        self._model, self._plan, self._on_step = model, plan, on_step

    def record(self, picture: Picture) -> Record:
        """The image's record, JSON values only; one with an ``error`` for an image that cannot be read or answered."""
        spec = self._model.spec
        try:
            decoded = image.read_channels(picture.path, spec.channels)
            x_CHW = image.prepare(decoded, spec).x_CHW
            forward = self._forward(x_CHW[None])
            logits_1K = forward.logits_NK
        except ConvLensError as error:
            return {"id": picture.id, "error": error.message}
        probability_1K = scores_of(logits_1K, "probability", spec.activation)
        predicted = int(logits_1K[0].argmax())
        target = predicted if picture.target is None else picture.target
        known = picture.true_class is not None
        return {
            "id": picture.id,
            "target": target,
            "label": spec.labels[target],
            "probability": float(probability_1K[0, target]),
            "logit": float(logits_1K[0, target]),
            "true_label": spec.labels[picture.true_class] if picture.true_class is not None else "",
            "correct": predicted == picture.true_class if known else None,
            "methods": {
                **{name: self._method(name, x_CHW, target, forward, picture) for name in self._plan.methods},
                **{name: self._baseline(name, x_CHW, target, forward, picture) for name in self._plan.baselines},
            },
        }

    def map_of(self, name: str, x_CHW: Floats, target: int, id: str) -> Floats:
        """The relevance (H, W) that a method or baseline gives an image."""
        if name in self._plan.methods:
            return relevance(self._explain(name, target, x_CHW[None])[0], get(name).drawing)
        return baseline_map(name, x_CHW, id=id, seed=self._plan.seed)

    def _method(self, name: str, x_CHW: Floats, target: int, forward: Forward, picture: Picture) -> Record:
        self._on_step(Step(name))
        # With a forward pass of its own: what a method costs is what it costs alone.
        started = time.perf_counter()
        try:
            values_CHW = self._explain(name, target, x_CHW[None])[0]
            seconds = time.perf_counter() - started
            map_HW = relevance(values_CHW, get(name).drawing)
            measured = self._measure(forward, target, values_CHW, map_HW, picture, partial(self._explain, name, target))
        except ConvLensError as error:
            return {"error": error.message}
        return {"seconds": round(seconds, 6), **measured}

    def _baseline(self, name: str, x_CHW: Floats, target: int, forward: Forward, picture: Picture) -> Record:
        self._on_step(Step(name))
        map_HW = baseline_map(name, x_CHW, id=picture.id, seed=self._plan.seed)
        return {"seconds": 0.0, **self._measure(forward, target, map_HW[None], map_HW, picture, None)}

    def _explain(self, name: str, target: int, x_NCHW: Tensor | Floats) -> Floats:
        """The method's values (N, C, H, W) for that class, whatever is predicted."""
        result = get(name).explain(self._forward(x_NCHW), [target] * len(x_NCHW), self._options(name))
        assert isinstance(result, Attribution), "neighbours give no map and are refused before"
        return result.values_NCHW

    def _options(self, name: str) -> dict[str, Any]:
        return dict(self._plan.methods[name])

    def _forward(self, x_NCHW: Tensor | Floats) -> Forward:
        if isinstance(self._model, GraphModel):
            return GraphForward(self._model, x_NCHW)
        return ForwardPass(self._model, x_NCHW)

    def _measure(
        self,
        forward: Forward,
        target: int,
        values_CHW: Floats,
        map_HW: Floats,
        picture: Picture,
        explain: Callable[[Tensor | Floats], Floats] | None,
    ) -> Record:
        plan = self._plan
        order = pixel_order(map_HW, seed=plan.protocol.seed)
        mapped = _Map(forward, target, values_CHW, map_HW, order, explain)
        values: dict[str, float] = {}
        curves = self._curves(mapped, values)
        if "sparseness" in plan.metrics:
            values["sparseness"] = gini(map_HW)
        return {"values": values, **({"curves": curves} if curves else {})}

    def _curves(self, mapped: _Map, values: dict[str, float]) -> Record:
        """The insertion and deletion curves that the plan wants; their areas go into ``values``."""
        kinds = [kind for kind in _CURVES if kind in self._plan.metrics]
        if not kinds:
            return {}
        curves = perturbation_curves(mapped.forward, mapped.target, mapped.order, kinds, self._plan.protocol)
        for kind, curve in curves.items():
            values[kind], values[f"{kind}_logit"] = curve.auc("probability"), curve.auc("logit")
        if len(curves) == len(_CURVES):
            values["faithfulness"] = values["insertion"] - values["deletion"]
        return {
            kind: {"probability": _rounded(curve.probability_S), "logit": _rounded(curve.logit_S)}
            for kind, curve in curves.items()
        }


def gini(map_HW: Floats) -> float:
    value = np.sort(np.abs(map_HW).reshape(-1).astype(np.float64))
    total = value.sum()
    if not total:
        return 0.0
    rank = np.arange(1, value.size + 1)
    return float(((2 * rank - value.size - 1) * value).sum() / (value.size * total))


def _rounded(values: Floats) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in np.asarray(values).tolist()]
