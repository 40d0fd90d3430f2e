"""Replies as pydantic models: what ``reply`` writes, said in types, for schemas and for whoever wants to check one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_CLOSED = ConfigDict(extra="forbid", frozen=True)


class ModelInfo(BaseModel):
    """Which model answered."""

    model_config = _CLOSED
    name: str
    version: str
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")


class PlacementBody(BaseModel):
    """Where in the upright picture the model looked, in the picture's pixels."""

    model_config = _CLOSED
    size: tuple[int, int] = Field(description="Width and height of the picture.")
    box: tuple[float, float, float, float] = Field(description="Left, top, right, bottom of what the model saw.")


class PredictionBody(BaseModel):
    """One class; ``probability`` is the softmax over all of them."""

    model_config = _CLOSED
    index: int = Field(ge=0)
    label: str
    probability: float = Field(ge=0, le=1)
    logit: float


class ArrayBody(BaseModel):
    """Raw little-endian numbers in C order: base64 text, or in a file of arrays the name of the array there."""

    model_config = _CLOSED
    dtype: Literal["<f4", "<f2"]
    shape: list[int]
    layout: str = Field(description="CHW, 1HW, or the axes of an extra; C channel, H height, W width, R, Q windows.")
    encoding: Literal["base64", "attached"]
    data: str


class PictureBody(BaseModel):
    """An encoded picture."""

    model_config = _CLOSED
    media_type: Literal["image/png", "image/jpeg"]
    encoding: Literal["base64"]
    data: str


class NeighbourBody(BaseModel):
    """One picture of the gallery; ``distance`` is Euclidean in its feature space."""

    model_config = _CLOSED
    id: str
    label: str
    distance: float = Field(ge=0)
    thumbnail: PictureBody | None = None


class Stats(BaseModel):
    """Of the raw values, before any reduction."""

    model_config = _CLOSED
    min: float
    max: float
    mean: float
    abs_max: float


class MetaBody(BaseModel):
    """How a result came about; counts and seconds are of the whole batch it was computed in."""

    model_config = _CLOSED
    weights_sha256: str
    target_kind: Literal["logit", "probability", "activation"]
    input_space: str
    dtype: str
    device: str
    runtime: str
    sweep: str
    seed: int | None
    layer: str | None
    relu_calls_seen: int
    relu_calls_ruled: int
    forwards: int
    backwards: int
    seconds: float
    warnings: list[str]


class NeuronBody(BaseModel):
    """The neuron that was explained; ``y`` and ``x`` as found where the request left them out, null without a map."""

    model_config = _CLOSED
    layer: str
    channel: int
    y: int | None
    x: int | None


class ExplanationBody(BaseModel):
    """One method's answer: a map with its pictures, or neighbours. ``target`` is null where a neuron was explained."""

    model_config = _CLOSED
    id: str
    method: str
    target: int | None
    target_label: str
    target_score: float | None = None
    neuron: NeuronBody | None = None
    array: ArrayBody | None = None
    extras: dict[str, ArrayBody] | None = None
    stats: Stats | None = None
    overlay: PictureBody | None = None
    heatmap: PictureBody | None = None
    neighbours: list[NeighbourBody] | None = None
    options: dict[str, Any] = Field(description="The options in effect, defaults included.")
    meta: MetaBody
    timing_ms: float


class ReplyBody(BaseModel):
    """The answer to one request."""

    model_config = _CLOSED
    model: ModelInfo
    request_id: str
    device: str
    runtime: str
    placement: PlacementBody | None
    predictions: list[PredictionBody]
    explanations: list[ExplanationBody]
    warnings: list[str]
    timing_ms: dict[str, float]


class ErrorBody(BaseModel):
    """What a refused request gets; ``field`` is the place in the request that was at fault."""

    model_config = _CLOSED
    code: int = Field(ge=400, le=599)
    type: str
    message: str
    field: str | None
    request_id: str


class V1Reply(BaseModel):
    """The answer to a KServe v1 body: a reply for each instance."""

    model_config = _CLOSED
    predictions: list[ReplyBody]


class V2Output(BaseModel):
    """A tensor: index INT64, label BYTES, probability FP64 of shape (pictures, topk); reply BYTES (JSON text)."""

    model_config = _CLOSED
    name: Literal["index", "label", "probability", "reply"]
    datatype: Literal["INT64", "BYTES", "FP64"]
    shape: list[int]
    data: list[int | float | str]


class V2Reply(BaseModel):
    """The answer to a KServe v2 body."""

    model_config = _CLOSED
    model_name: str
    model_version: str
    id: str
    outputs: list[V2Output]
