"""Replies read back: what ``reply`` wrote, as the library's own values. Imports no torch, so that a client need not."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from convlens.errors import ServerError
from convlens.types import (
    Attribution,
    Explanation,
    Floats,
    Meta,
    Neighbour,
    Neighbourhood,
    Placement,
    Prediction,
    Reply,
    Result,
)


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
            placement=_read_placement(body.get("placement")),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ServerError(f"this is no reply of a ConvLens server: {error!r}") from error


def _read_placement(body: Mapping[str, Any] | None) -> Placement | None:
    if body is None:
        return None
    (width, height), (left, top, right, bottom) = body["size"], body["box"]
    return Placement((width, height), (left, top, right, bottom))


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


def decode_array(body: Mapping[str, Any]) -> Floats:
    """The array that encode_array wrote."""
    flat = np.frombuffer(base64.b64decode(body["data"]), dtype=np.dtype(body["dtype"]))
    return flat.reshape(body["shape"])
