"""One image's part of an evaluation: every method's map of it, and what the metrics say of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from convlens import image
from convlens.errors import ConvLensError
from convlens.evaluation.baselines import baseline_map
from convlens.evaluation.captum_metrics import ScoreChanges, infidelity, max_sensitivity, score_changes
from convlens.evaluation.localisation import localise
from convlens.evaluation.metrics import GROUPS
from convlens.evaluation.objects import MarkedObject, Mask, object_mask, objects_for
from convlens.evaluation.perturbation import CurveProtocol, ImageCurves
from convlens.evaluation.randomisation import RandomisedNetworks, randomisation_values
from convlens.evaluation.relevance import pixel_order, relevance, sparseness
from convlens.evaluation.road import road_curves, road_values
from convlens.evaluation.stages import Stage
from convlens.explain import ForwardPass, GraphForward, GraphModel, get
from convlens.explain.forward import Forward, OnStep
from convlens.explain.sampled_gradients import folded_once
from convlens.explain.scores import scores_of
from convlens.models import Classifier
from convlens.types import Attribution, CurveKind, Floats, Ints, ModelSpec, Step, no_op

Record = dict[str, Any]
Explain = Callable[[Tensor | Floats], Floats]
_DIGITS = 7  # of a curve's values in a record: as many as float32 has
_CURVES: tuple[CurveKind, ...] = ("insertion", "deletion")
MOST_COST = 200.0
"""Forward passes: what costs more gets no sanity checks, which make each map once for every randomised network."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What to measure on each image; ``methods`` are names with their options.

    ``stages`` are the parts of the network that sanity checks randomise.
    """

    methods: Mapping[str, Mapping[str, Any]]
    baselines: tuple[str, ...]
    metrics: tuple[str, ...]
    protocol: CurveProtocol = field(default_factory=CurveProtocol)
    seed: int = 0
    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class Picture:
    """One image to evaluate: its file, its true class (None: unknown) and whether costly metrics are measured on it.

    ``target`` is the class to explain, None for the predicted one; ``objects`` are those marked in it.
    """

    id: str
    path: Path
    true_class: int | None = None
    target: int | None = None
    costly: bool = False
    objects: tuple[MarkedObject, ...] = ()


@dataclass(frozen=True)
class _Case:
    """One image on its way through all methods: ``target`` is explained, ``mask_HW`` marks its object where known."""

    picture: Picture
    x_CHW: Floats
    forward: Forward
    target: int
    mask_HW: Mask | None
    changes: ScoreChanges | None
    curves: ImageCurves | None


class PictureEvaluator:
    """Evaluates the methods of a plan on one image after another; ``on_step`` gets the method that is worked on."""

    def __init__(self, model: Classifier | GraphModel, plan: EvaluationPlan, *, on_step: OnStep = no_op) -> None:
        self._model, self._plan, self._on_step = model, plan, on_step

    @cached_property
    def _randomised(self) -> RandomisedNetworks:
        assert isinstance(self._model, Classifier), "graphs alone are refused before"
        return RandomisedNetworks(self._model, self._plan.stages, seed=self._plan.seed)

    def record(self, picture: Picture) -> Record:
        """The image's record, JSON values only; one with an ``error`` for an image that cannot be read or answered."""
        spec = self._model.spec
        try:
            decoded = image.read_channels(picture.path, spec.channels)
            prepared = image.prepare(decoded, spec)
            forward = self._forward(prepared.x_CHW[None])
            logits_1K = forward.logits_NK
            target = int(logits_1K[0].argmax()) if picture.target is None else picture.target
            objects = objects_for(picture.objects, spec.labels[target])
            mask_HW, unmarked = object_mask(objects, decoded.size, prepared.box, spec.input_size)
            changes = self._changes(forward, target) if self._wants("infidelity", picture) else None
            kinds = [kind for kind in _CURVES if kind in self._plan.metrics]
            of_image = ImageCurves(forward, target, kinds, self._plan.protocol) if kinds else None
        except ConvLensError as error:
            return {"id": picture.id, "error": error.message}
        case = _Case(picture, prepared.x_CHW, forward, target, mask_HW, changes, of_image)
        maps: dict[str, Floats] = {}
        with folded_once(self._model.module) if isinstance(self._model, Classifier) else nullcontext():
            methods = {name: self._method(name, case, maps) for name in self._plan.methods}
        if self._wants("randomisation", picture):
            self._add_randomisation(case, methods, maps)
        return {
            "id": picture.id,
            **_target_fields(case, logits_1K[0], spec),
            **({"unmarked": unmarked} if self._wants("localisation", picture) and unmarked else {}),
            "methods": {**methods, **{name: self._baseline(name, case) for name in self._plan.baselines}},
        }

    def map_of(self, name: str, x_CHW: Floats, target: int, id: str) -> Floats:
        """The relevance (H, W) that a method or baseline gives an image."""
        if name in self._plan.methods:
            return relevance(self._explain(name, target, x_CHW[None])[0], get(name).drawing)
        return baseline_map(name, x_CHW, id=id, seed=self._plan.seed)

    def _method(self, name: str, case: _Case, maps: dict[str, Floats]) -> Record:
        """The method's record; its relevance goes into ``maps``."""
        self._on_step(Step(name))
        explain = partial(self._explain, name, case.target)
        # With a forward pass of its own: what a method costs is what it costs alone.
        started = time.perf_counter()
        try:
            values_CHW = explain(case.x_CHW[None])[0]
            seconds = time.perf_counter() - started
            map_HW = relevance(values_CHW, get(name).drawing)
            measured = self._measure(case, map_HW, explain)
        except ConvLensError as error:
            return {"error": error.message}
        maps[name] = map_HW
        return {"seconds": round(seconds, 6), **measured}

    def _baseline(self, name: str, case: _Case) -> Record:
        self._on_step(Step(name))
        map_HW = baseline_map(name, case.x_CHW, id=case.picture.id, seed=self._plan.seed)
        try:
            return {"seconds": 0.0, **self._measure(case, map_HW, None)}
        except ConvLensError as error:
            return {"error": error.message}

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

    def _measure(self, case: _Case, map_HW: Floats, explain: Explain | None) -> Record:
        """``values`` and ``curves`` of one map; ``explain`` makes that of other images, None for a baseline."""
        values: dict[str, float] = {}
        order = pixel_order(map_HW, seed=self._plan.protocol.seed)
        curves: Record = self._curves(case, order, values)
        if self._wants("road", case.picture):
            road = self._road(case, order)
            values |= road_values(road)
            curves["road"] = {name: _rounded(curve) for name, curve in road.items()}
        if case.changes is not None:
            values["infidelity"] = infidelity(case.changes, map_HW[None])
        if self._wants("sensitivity", case.picture) and explain is not None:
            values["max_sensitivity"] = max_sensitivity(explain, case.forward.x_NCHW[0], seed=self._plan.seed)
        if self._wants("sparseness", case.picture):
            values["sparseness"] = sparseness(map_HW)
        if self._wants("localisation", case.picture) and case.mask_HW is not None:
            values |= localise(map_HW, case.mask_HW)
        return {"values": values, **({"curves": curves} if curves else {})}

    def _wants(self, group: str, picture: Picture) -> bool:
        """Whether to measure this group of metrics on the image."""
        return group in self._plan.metrics and (picture.costly or not GROUPS[group].costly)

    def _road(self, case: _Case, order: Ints) -> dict[str, Floats]:
        activation, seed = self._model.spec.activation, self._plan.seed
        return road_curves(case.forward.outputs_of, case.x_CHW, order, case.target, seed=seed, activation=activation)

    def _changes(self, forward: Forward, target: int) -> ScoreChanges:
        return score_changes(forward.outputs_of, forward.x_NCHW[0], target, seed=self._plan.seed)

    def _add_randomisation(self, case: _Case, methods: Mapping[str, Record], maps: Mapping[str, Floats]) -> None:
        """Compare each method's map with those of randomised networks; those that cost too much are left out."""
        self._on_step(Step("randomisation"))
        size = self._model.spec.input_size
        checked = {
            name: self._options(name) for name in maps if get(name).cost(self._complete(name), size) <= MOST_COST
        }
        originals = {name: maps[name] for name in checked}
        found = self._randomised.curves(case.x_CHW, case.target, checked, originals=originals)
        for name, curves in found.items():
            methods[name].setdefault("curves", {})["randomisation"] = curves
            methods[name]["values"] |= randomisation_values(curves)

    def _complete(self, name: str) -> dict[str, Any]:
        """The method's options with its defaults."""
        return {option: default for option, (_, default) in get(name).options.items()} | self._options(name)

    def _curves(self, case: _Case, order: Ints, values: dict[str, float]) -> Record:
        """The insertion and deletion curves that the plan wants; their areas go into ``values``."""
        if case.curves is None:
            return {}
        curves = case.curves.of(order)
        for kind, curve in curves.items():
            values[kind], values[f"{kind}_logit"] = curve.auc("probability"), curve.auc("logit")
        if len(curves) == len(_CURVES):
            values["faithfulness"] = values["insertion"] - values["deletion"]
        return {
            kind: {"probability": _rounded(curve.probability_S), "logit": _rounded(curve.logit_S)}
            for kind, curve in curves.items()
        }


def _target_fields(case: _Case, logits_K: Floats, spec: ModelSpec) -> Record:
    """What is explained, and whether the prediction is right."""
    true_class = case.picture.true_class
    return {
        "target": case.target,
        "label": spec.labels[case.target],
        "probability": float(scores_of(logits_K[None], "probability", spec.activation)[0, case.target]),
        "logit": float(logits_K[case.target]),
        "true_label": "" if true_class is None else spec.labels[true_class],
        "correct": None if true_class is None else bool(logits_K.argmax() == true_class),
    }


def _rounded(values: Floats) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in np.asarray(values).tolist()]
