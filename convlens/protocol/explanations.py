"""One explanation of a reply on the wire: a map or neighbours, with the images made from them.

The names, docstrings and field descriptions of the models are part of the published schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from convlens import visualization
from convlens.protocol.arrays import ArrayBody, PictureBody, ReplyModel
from convlens.protocol.params import Params
from convlens.types import (
    Attribution,
    CurveKind,
    Evaluation,
    Explanation,
    Floats,
    Meta,
    Neighbour,
    Neighbourhood,
    Neuron,
    Placement,
    Result,
    ScoreCurve,
    ScoreKind,
)

_LAYOUTS = {"none": "CHW", "abs_max": "1HW", "sum": "1HW"}


class NeighbourBody(ReplyModel):
    """One picture of the gallery; ``distance`` is Euclidean in its feature space."""

    id: str
    label: str
    distance: float = Field(ge=0)
    thumbnail: PictureBody | None = None

    @classmethod
    def from_neighbour(cls, neighbour: Neighbour, params: Params) -> Self:
        thumbnail: dict[str, Any] = {}
        if neighbour.thumbnail and params.thumbnails:
            thumbnail["thumbnail"] = PictureBody.of(neighbour.thumbnail, "image/jpeg")
        return cls(id=neighbour.id, label=neighbour.label, distance=neighbour.distance, **thumbnail)

    def to_neighbour(self) -> Neighbour:
        return Neighbour(self.id, self.label, self.distance, _decoded(self.thumbnail))


class Stats(ReplyModel):
    """Of the raw values, before any reduction."""

    min: float
    max: float
    mean: float
    abs_max: float

    @classmethod
    def from_values(cls, values: Floats) -> Self:
        return cls(
            min=float(values.min()),
            max=float(values.max()),
            mean=float(values.mean(dtype=np.float64)),  # a sum in float32 could overflow
            abs_max=float(np.abs(values).max()),
        )


class MetaBody(ReplyModel):
    """How a result came about; counts and seconds are of the whole batch it was computed in."""

    weights_sha256: str
    target_kind: Literal["logit", "probability", "activation"]
    input_space: str
    dtype: str
    device: str
    runtime: str
    sweep: str
    precision: str
    seed: int | None
    layer: str | None
    relu_calls_seen: int
    relu_calls_ruled: int
    forwards: int
    backwards: int
    seconds: float
    warnings: list[str]

    @model_validator(mode="before")
    @classmethod
    def _older_server(cls, body: Any) -> Any:
        # A server older than this client leaves out what was added since; these have their defaults.
        defaults = {field.name: field.default for field in fields(Meta) if field.default is not MISSING}
        return {**defaults, **body} if isinstance(body, Mapping) else body

    def to_meta(self) -> Meta:
        return Meta(**{**dict(self), "warnings": tuple(self.warnings)})


class NeuronBody(ReplyModel):
    """The neuron that was explained; ``y`` and ``x`` as found where the request left them out, null without a map."""

    layer: str
    channel: int
    y: int | None
    x: int | None


class AreaBody(ReplyModel):
    """The area under a curve: its mean score."""

    probability: float
    logit: float


class CurveBody(ReplyModel):
    """The class's scores with the best ``fraction`` of the pixels removed (deletion) or shown (insertion)."""

    auc: AreaBody
    fraction: list[float]
    probability: list[float]
    logit: list[float]

    @classmethod
    def from_curve(cls, curve: ScoreCurve) -> Self:
        return cls(
            auc=AreaBody(probability=curve.auc["probability"], logit=curve.auc["logit"]),
            fraction=curve.fraction_S.tolist(),
            probability=curve.probability_S.tolist(),
            logit=curve.logit_S.tolist(),
        )

    def to_curve(self) -> ScoreCurve:
        fraction_S, probability_S, logit_S = map(np.asarray, (self.fraction, self.probability, self.logit))
        auc: dict[ScoreKind, float] = {"probability": self.auc.probability, "logit": self.auc.logit}
        return ScoreCurve(fraction_S, probability_S, logit_S, auc)


class EvaluationProtocolBody(ReplyModel):
    """How the curves were made: steps, what missing pixels show, and how the pixels are ordered."""

    steps: int
    insertion_substrate: str
    deletion_substrate: str
    seed: int
    order: str


class EvaluationBody(ReplyModel):
    """How well the map's order of the pixels predicts the class's score; the curves that were asked for."""

    deletion: CurveBody | None = None
    insertion: CurveBody | None = None
    protocol: EvaluationProtocolBody

    @classmethod
    def from_evaluation(cls, evaluation: Evaluation) -> Self:
        curves: dict[str, Any] = {kind: CurveBody.from_curve(curve) for kind, curve in evaluation.curves.items()}
        return cls(protocol=EvaluationProtocolBody.model_validate(evaluation), **curves)

    def to_evaluation(self) -> Evaluation:
        bodies: dict[CurveKind, CurveBody | None] = {"deletion": self.deletion, "insertion": self.insertion}
        curves = {kind: body.to_curve() for kind, body in bodies.items() if body}
        return Evaluation(curves, **dict(self.protocol))


class ExplanationBody(ReplyModel):
    """One method's answer: a map with its pictures, or neighbours. ``target`` is null where a neuron was explained."""

    # In the order of the JSON. A field with a default is absent there where it does not apply, never null.
    id: str
    method: str
    target: int | None
    target_label: str
    target_score: float | None = None
    neuron: NeuronBody | None = None
    array: ArrayBody | None = None
    extras: dict[str, ArrayBody] | None = None
    stats: Stats | None = None
    neighbours: list[NeighbourBody] | None = None
    overlay: PictureBody | None = None
    heatmap: PictureBody | None = None
    evaluation: EvaluationBody | None = None
    options: dict[str, Any] = Field(description="The options in effect, defaults included.")
    meta: MetaBody
    timing_ms: float

    @classmethod
    def from_explanation(
        cls, explanation: Explanation, params: Params, placement: Placement | None, file: dict[str, Floats] | None
    ) -> Self:
        result = explanation.result
        if isinstance(result, Attribution):
            content = _attribution_fields(explanation.id, result, params, placement, file)
        else:
            neighbours = [NeighbourBody.from_neighbour(one, params) for one in result.neighbours_NM[0]]
            content = {"target": None, "neighbours": neighbours}
        for name, png in (("overlay", explanation.overlay_png), ("heatmap", explanation.heatmap_png)):
            if png:
                content[name] = PictureBody.of(png, "image/png")
        if explanation.evaluation:
            content["evaluation"] = EvaluationBody.from_evaluation(explanation.evaluation)
        return cls(
            id=explanation.id,
            method=explanation.method,
            target_label=explanation.target_label,
            options=dict(result.options),
            meta=MetaBody.model_validate(result.meta),
            timing_ms=explanation.milliseconds,
            **content,
        )

    def to_explanation(self, attached: Mapping[str, memoryview]) -> Explanation:
        return Explanation(
            self.id,
            self.method,
            self._result(attached),
            self.target_label,
            self.timing_ms,
            _decoded(self.overlay),
            _decoded(self.heatmap),
            self.evaluation.to_evaluation() if self.evaluation else None,
        )

    def _result(self, attached: Mapping[str, memoryview]) -> Result:
        meta = self.meta.to_meta()
        if self.neighbours is not None:
            neighbours = tuple(body.to_neighbour() for body in self.neighbours)
            return Neighbourhood((neighbours,), self.method, self.options, meta)
        neurons = (Neuron(**dict(self.neuron)),) if self.neuron else ()
        target = -1 if neurons else self.target
        if target is None or self.target_score is None:
            raise ValueError(f"explanation {self.id!r} has neither neighbours nor a target with its score")
        # One row: arrays are batch first everywhere in the library. A map that was not asked for is empty.
        values = self.array.decode(attached)[None] if self.array else np.zeros((1, 0, 0, 0), np.float32)
        extras = {name: array.decode(attached)[None] for name, array in (self.extras or {}).items()}
        score_N, target_N = np.asarray([self.target_score]), np.asarray([target])
        return Attribution(values, score_N, target_N, self.method, self.options, meta, extras, neurons)


def _attribution_fields(
    name: str, result: Attribution, params: Params, placement: Placement | None, file: dict[str, Floats] | None
) -> dict[str, Any]:
    """Those fields of an ExplanationBody that a map has; ``name`` is the map's own within the reply."""
    body: dict[str, Any] = {"target": int(result.target_N[0]), "target_score": float(result.score_N[0])}
    if result.neurons_N:
        body |= {"target": None, "neuron": NeuronBody.model_validate(result.neurons_N[0])}
    if "array" in params.output:
        map_CHW = _reduced(result, params.reduce)
        if params.size == "original" and placement is not None:
            map_CHW = visualization.place_in_image(map_CHW, size=placement.size, box=placement.box)
        encode = partial(ArrayBody.of, dtype=params.dtype, file=file)
        body["array"] = encode(map_CHW, layout=_LAYOUTS[params.reduce], name=name)
        body["extras"] = {
            # An extra's own name ends with its axes, batch first: grid_NRQ is sent as RQ.
            key: encode(values[0], layout=key.rpartition("_")[2].removeprefix("N"), name=f"{name}/{key}")
            for key, values in result.extras.items()
        }
    return body | {"stats": Stats.from_values(result.values_NCHW[0])}


def _reduced(attribution: Attribution, how: str) -> Floats:
    """The values as a reply carries them: (C, H, W) as they are, or (1, H, W) by abs_max or sum."""
    values_CHW: Floats = np.asarray(attribution.values_NCHW[0])
    if how == "none":
        return values_CHW
    map_HW = visualization.abs_max(values_CHW) if how == "abs_max" else visualization.signed_sum(values_CHW)
    return np.asarray(map_HW)[None]


def _decoded(body: PictureBody | None) -> bytes:
    return body.decode() if body else b""
