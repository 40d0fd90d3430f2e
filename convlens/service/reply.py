"""Replies as strict JSON: arrays as base64 little-endian, pictures as base64 PNG."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from convlens import colour
from convlens.errors import ConvLensError
from convlens.service.draw import reduced
from convlens.service.request import Params
from convlens.types import Attribution, Explanation, Floats, Neighbour, Placement, Reply

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
        return colour.placed(values_CHW, size=self.placement.size, box=self.placement.box)

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
