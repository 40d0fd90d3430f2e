"""Replies as pydantic models: what ``reply`` writes, said in types, for schemas and for whoever wants to check one.

Replies as strict JSON: arrays as base64 little-endian, pictures as base64 PNG.

Replies read back: what ``reply`` and ``files`` wrote, as the library's own values. Imports no torch, so that a
client need not.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from convlens import visualization
from convlens.errors import ConvLensError, ServerError
from convlens.protocol.params import Params
from convlens.types import (
    Attribution,
    Explanation,
    Floats,
    Meta,
    Neighbour,
    Neighbourhood,
    Neuron,
    Placement,
    Prediction,
    Reply,
    Result,
)


def reduced(attribution: Attribution, how: str) -> Floats:
    """The values as a reply carries them: (C, H, W) as they are, or (1, H, W) by abs_max or sum."""
    values_CHW: Floats = np.asarray(attribution.values_NCHW[0])
    if how == "none":
        return values_CHW
    map_HW = visualization.abs_max(values_CHW) if how == "abs_max" else visualization.signed_sum(values_CHW)
    return np.asarray(map_HW)[None]


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


_LAYOUT = {"none": "CHW", "abs_max": "1HW", "sum": "1HW"}


class Encode(Protocol):
    """How an array goes into the reply's JSON; ``name`` is its own within the reply."""

    def __call__(self, values: Floats, layout: str, name: str) -> dict[str, Any]: ...


def to_json(reply: Reply, params: Params, *, encode: Encode | None = None) -> dict[str, Any]:
    """The reply's JSON object, with arrays in the dtype, reduction and size that the request asked for.

    ``encode``: base64 unless given.
    """
    writer = _Writer(params, reply.placement, encode or _in_base64(params.dtype))
    place = reply.placement
    return {
        "model": {"name": reply.model_name, "version": reply.model_version, "weights_sha256": reply.weights_sha256},
        "request_id": reply.request_id,
        "device": reply.device,
        "runtime": reply.runtime,
        "placement": place and {"size": list(place.size), "box": list(place.box)},
        "predictions": [asdict(prediction) for prediction in reply.predictions],
        "explanations": [writer.explanation(one) for one in reply.explanations],
        "warnings": list(reply.warnings),
        "timing_ms": dict(reply.timing_ms),
    }


def error_json(error: ConvLensError, *, request_id: str = "") -> dict[str, Any]:
    """The error's JSON object: code, type, message, field, request_id. What it quotes of a request is cut short."""
    return {
        "code": error.status,
        "type": type(error).__name__,
        "message": _short(error.message, 2000),
        "field": error.field and _short(error.field, 200),
        "request_id": request_id,
    }


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def dumps(body: Mapping[str, Any]) -> str:
    """Strict JSON: NaN and infinity are an error of ours, never text that a client cannot parse."""
    return json.dumps(body, allow_nan=False, ensure_ascii=True, separators=(",", ":"))


def encode_array(values: Floats, dtype: str, layout: str) -> dict[str, Any]:
    """Raw little-endian bytes in base64 with what is needed to read them; float16 saturates instead of overflowing."""
    data = base64.b64encode(flat_array(values, dtype).tobytes()).decode()
    return {"dtype": dtype, "shape": list(values.shape), "layout": layout, "encoding": "base64", "data": data}


def flat_array(values: Floats, dtype: str) -> Floats:
    """In that dtype and in C order; what is beyond float16 becomes its largest value."""
    target = np.dtype(dtype)
    clipped = np.clip(values, np.finfo(target).min, np.finfo(target).max)
    return np.ascontiguousarray(clipped, dtype=target)


def _in_base64(dtype: str) -> Encode:
    def encode(values: Floats, layout: str, name: str) -> dict[str, Any]:
        return encode_array(values, dtype, layout)

    return encode


@dataclass(frozen=True)
class _Writer:
    params: Params
    placement: Placement | None
    encode: Encode

    def explanation(self, one: Explanation) -> dict[str, Any]:
        body: dict[str, Any] = {"id": one.id, "method": one.method, "target": None, "target_label": one.target_label}
        if isinstance(one.result, Attribution):
            body |= self._attribution(one.id, one.result)
        else:
            body["neighbours"] = [self._neighbour(found) for found in one.result.neighbours_NM[0]]
        for name, data in (("overlay", one.overlay_png), ("heatmap", one.heatmap_png)):
            if data:
                body[name] = {"media_type": "image/png", "encoding": "base64", "data": _base64(data)}
        body["options"] = dict(one.result.options)
        body["meta"] = asdict(one.result.meta)
        body["timing_ms"] = one.milliseconds
        return body

    def _attribution(self, name: str, result: Attribution) -> dict[str, Any]:
        body: dict[str, Any] = {"target": int(result.target_N[0]), "target_score": float(result.score_N[0])}
        if result.neurons_N:
            body |= {"target": None, "neuron": asdict(result.neurons_N[0])}
        if "array" in self.params.output:
            map_CHW = self._sized(reduced(result, self.params.reduce))
            body["array"] = self.encode(map_CHW, _LAYOUT[self.params.reduce], name)
            body["extras"] = {
                key: self.encode(np.asarray(values[0]), key.rpartition("_")[2].removeprefix("N"), f"{name}/{key}")
                for key, values in result.extras.items()
            }
        body["stats"] = _stats(result.values_NCHW[0])
        return body

    def _sized(self, values_CHW: Floats) -> Floats:
        if self.params.size == "model" or self.placement is None:
            return values_CHW
        return visualization.place_in_image(values_CHW, size=self.placement.size, box=self.placement.box)

    def _neighbour(self, found: Neighbour) -> dict[str, Any]:
        body: dict[str, Any] = {"id": found.id, "label": found.label, "distance": found.distance}
        if found.thumbnail and self.params.thumbnails:
            body["thumbnail"] = {"media_type": "image/jpeg", "encoding": "base64", "data": _base64(found.thumbnail)}
        return body


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _stats(values_CHW: Floats) -> dict[str, float]:
    stats = {
        "min": values_CHW.min(),
        "max": values_CHW.max(),
        "mean": values_CHW.mean(dtype=np.float64),  # a sum in float32 could overflow
        "abs_max": np.abs(values_CHW).max(),
    }
    return {name: float(value) for name, value in stats.items()}


_LENGTH = 8  # bytes at a safetensors file's beginning: how many of JSON follow
_NONE: Mapping[str, memoryview] = {}


def parse_reply(body: bytes) -> Reply:
    """The Reply in the body of an answer, be it JSON or a safetensors file; ServerError for anything else."""
    # The length of a file that exists has zeros in its upper bytes, JSON text none.
    if body[_LENGTH - 1 : _LENGTH] == b"\0":
        return _from_safetensors(body)
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServerError(f"this is no reply of a ConvLens server, but starts with {body[:60]!r}") from error
    return from_json(said)


def from_json(body: Mapping[str, Any], attached: Mapping[str, memoryview] = _NONE) -> Reply:
    """The Reply that ``to_json`` wrote, but for what dtype and reduction took away; ServerError for anything else.

    ``attached``: the raw bytes of arrays that the JSON only names.
    """
    reader = _Reader(attached)
    try:
        return Reply(
            model_name=body["model"]["name"],
            model_version=body["model"]["version"],
            weights_sha256=body["model"]["weights_sha256"],
            request_id=body["request_id"],
            device=body["device"],
            runtime=body["runtime"],
            predictions=tuple(Prediction(**prediction) for prediction in body["predictions"]),
            explanations=tuple(reader.explanation(one) for one in body["explanations"]),
            warnings=tuple(body["warnings"]),
            timing_ms=dict(body["timing_ms"]),
            placement=_read_placement(body.get("placement")),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ServerError(f"this is no reply of a ConvLens server: {error!r}") from error


def decode_array(body: Mapping[str, Any], attached: Mapping[str, memoryview] = _NONE) -> Floats:
    """The array that encode_array wrote, or the attached one that it names; read-only."""
    data = attached[body["data"]] if body["encoding"] == "attached" else base64.b64decode(body["data"])
    flat: Floats = np.frombuffer(data, dtype=np.dtype(body["dtype"]))
    return flat.reshape(body["shape"])


def _from_safetensors(body: bytes) -> Reply:
    """The maps stay where they are in the body: a megabyte of them is read without being copied."""
    start = _LENGTH + int.from_bytes(body[:_LENGTH], "little")
    try:
        header = json.loads(body[_LENGTH:start])
        reply = json.loads(header.pop("__metadata__")["reply"])
        spans = {name: tensor["data_offsets"] for name, tensor in header.items()}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ServerError(f"this is no reply of a ConvLens server: {error!r}") from error
    view = memoryview(body)[start:]
    return from_json(reply, {name: view[begin:end] for name, (begin, end) in spans.items()})


def _read_placement(body: Mapping[str, Any] | None) -> Placement | None:
    if body is None:
        return None
    (width, height), (left, top, right, bottom) = body["size"], body["box"]
    return Placement((width, height), (left, top, right, bottom))


@dataclass(frozen=True)
class _Reader:
    attached: Mapping[str, memoryview]

    def explanation(self, body: Mapping[str, Any]) -> Explanation:
        return Explanation(
            body["id"],
            body["method"],
            self._result(body),
            body["target_label"],
            body["timing_ms"],
            _read_png(body.get("overlay")),
            _read_png(body.get("heatmap")),
        )

    def _result(self, body: Mapping[str, Any]) -> Result:
        meta = _read_meta(body["meta"])
        if "neighbours" in body:
            found = tuple(_read_neighbour(one) for one in body["neighbours"])
            return Neighbourhood((found,), body["method"], body["options"], meta)
        values = self._row(body["array"]) if "array" in body else np.zeros((1, 0, 0, 0), np.float32)
        extras = {name: self._row(array) for name, array in body.get("extras", {}).items()}
        neurons = (Neuron(**body["neuron"]),) if body.get("neuron") else ()
        score_N, target_N = np.asarray([body["target_score"]]), np.asarray([-1 if neurons else body["target"]])
        return Attribution(values, score_N, target_N, body["method"], body["options"], meta, extras, neurons)

    def _row(self, body: Mapping[str, Any]) -> Floats:
        """Batch first, as everywhere in the library."""
        return decode_array(body, self.attached)[None]


def _read_meta(body: Mapping[str, Any]) -> Meta:
    known = {field.name for field in fields(Meta)}
    given = {key: value for key, value in body.items() if key in known}
    return Meta(**given | {"warnings": tuple(body["warnings"])})


def _read_neighbour(body: Mapping[str, Any]) -> Neighbour:
    return Neighbour(body["id"], body["label"], body["distance"], _read_png(body.get("thumbnail")))


def _read_png(body: Mapping[str, Any] | None) -> bytes:
    return base64.b64decode(body["data"]) if body else b""
