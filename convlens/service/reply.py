"""Replies as strict JSON: arrays as base64 little-endian, pictures as base64 PNG."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from convlens.errors import ConvLensError
from convlens.service.draw import reduced
from convlens.service.request import Params
from convlens.types import Attribution, Explanation, Floats, Neighbour, Reply

_LAYOUT = {"none": "CHW", "abs_max": "1HW", "sum": "1HW"}


def to_json(reply: Reply, params: Params) -> dict[str, Any]:
    """The reply's JSON object, with arrays in the dtype and reduction that the request asked for."""
    return {
        "model": {"name": reply.model_name, "version": reply.model_version, "weights_sha256": reply.weights_sha256},
        "request_id": reply.request_id,
        "device": reply.device,
        "runtime": reply.runtime,
        "predictions": [asdict(prediction) for prediction in reply.predictions],
        "explanations": [_explanation(one, params) for one in reply.explanations],
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
    target = np.dtype(dtype)
    clipped = np.clip(values, np.finfo(target).min, np.finfo(target).max)
    data = base64.b64encode(np.ascontiguousarray(clipped, dtype=target).tobytes()).decode()
    return {"dtype": dtype, "shape": list(values.shape), "layout": layout, "encoding": "base64", "data": data}


def _explanation(one: Explanation, params: Params) -> dict[str, Any]:
    body: dict[str, Any] = {"id": one.id, "method": one.method, "target": None, "target_label": one.target_label}
    if isinstance(one.result, Attribution):
        body |= _attribution(one.result, params)
    else:
        body["neighbours"] = [_neighbour(found) for found in one.result.neighbours_NM[0]]
    for name, data in (("overlay", one.overlay_png), ("heatmap", one.heatmap_png)):
        if data:
            body[name] = {"media_type": "image/png", "encoding": "base64", "data": base64.b64encode(data).decode()}
    body["options"] = dict(one.result.options)
    body["meta"] = asdict(one.result.meta)
    body["timing_ms"] = one.milliseconds
    return body


def _attribution(result: Attribution, params: Params) -> dict[str, Any]:
    body: dict[str, Any] = {"target": int(result.target_N[0]), "target_score": float(result.score_N[0])}
    if "array" in params.output:
        body["array"] = encode_array(reduced(result, params.reduce), params.dtype, _LAYOUT[params.reduce])
        body["extras"] = {
            name: encode_array(np.asarray(values[0]), params.dtype, name.rpartition("_")[2].removeprefix("N"))
            for name, values in result.extras.items()
        }
    body["stats"] = _stats(result.values_NCHW[0])
    return body


def _stats(values_CHW: Floats) -> dict[str, float]:
    stats = {
        "min": values_CHW.min(),
        "max": values_CHW.max(),
        "mean": values_CHW.mean(dtype=np.float64),  # a sum in float32 could overflow
        "abs_max": np.abs(values_CHW).max(),
    }
    return {name: float(value) for name, value in stats.items()}


def _neighbour(found: Neighbour) -> dict[str, Any]:
    body: dict[str, Any] = {"id": found.id, "label": found.label, "distance": found.distance}
    if found.thumbnail:
        data = base64.b64encode(found.thumbnail).decode()
        body["thumbnail"] = {"media_type": "image/jpeg", "encoding": "base64", "data": data}
    return body
