"""Replies as strict JSON and back: arrays as base64 little-endian, pictures as base64 PNG."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from convlens.errors import ConvLensError, ServerError
from convlens.service.draw import reduced
from convlens.service.request import Params
from convlens.types import Attribution, Explanation, Floats, Meta, Neighbour, Neighbourhood, Prediction, Reply, Result

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


def decode_array(body: Mapping[str, Any]) -> Floats:
    """The array that encode_array wrote."""
    flat = np.frombuffer(base64.b64decode(body["data"]), dtype=np.dtype(body["dtype"]))
    return flat.reshape(body["shape"])


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


# --- and back ---------------------------------------------------------------------------------------------------------


def from_json(body: Mapping[str, Any]) -> Reply:
    """The Reply that ``to_json`` wrote, but for what dtype and reduction took away; ServerError for anything else."""
    try:
        return Reply(
            model_name=body["model"]["name"],
            model_version=body["model"]["version"],
            weights_sha256=body["model"]["weights_sha256"],
            request_id=body["request_id"],
            device=body["device"],
            runtime=body["runtime"],
            predictions=tuple(Prediction(**prediction) for prediction in body["predictions"]),
            explanations=tuple(_read_explanation(one) for one in body["explanations"]),
            warnings=tuple(body["warnings"]),
            timing_ms=dict(body["timing_ms"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ServerError(f"this is no reply of a ConvLens server: {error!r}") from error


def _read_explanation(body: Mapping[str, Any]) -> Explanation:
    return Explanation(
        body["id"],
        body["method"],
        _read_result(body),
        body["target_label"],
        body["timing_ms"],
        _read_png(body.get("overlay")),
        _read_png(body.get("heatmap")),
    )


def _read_result(body: Mapping[str, Any]) -> Result:
    known = {field.name for field in fields(Meta)}
    meta = Meta(
        **{key: value for key, value in body["meta"].items() if key in known}
        | {"warnings": tuple(body["meta"]["warnings"])}
    )
    if "neighbours" in body:
        found = tuple(
            Neighbour(one["id"], one["label"], one["distance"], _read_png(one.get("thumbnail")))
            for one in body["neighbours"]
        )
        return Neighbourhood((found,), body["method"], body["options"], meta)
    values = decode_array(body["array"])[None] if "array" in body else np.zeros((1, 0, 0, 0), np.float32)
    extras = {name: decode_array(array)[None] for name, array in body.get("extras", {}).items()}
    score_N, target_N = np.asarray([body["target_score"]]), np.asarray([body["target"]])
    return Attribution(values, score_N, target_N, body["method"], body["options"], meta, extras)


def _read_png(body: Mapping[str, Any] | None) -> bytes:
    return base64.b64decode(body["data"]) if body else b""
