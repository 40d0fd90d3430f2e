"""Replies read back: what ``reply`` and ``files`` wrote, as the library's own values. Imports no torch, so that a
client need not.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
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
    Neuron,
    Placement,
    Prediction,
    Reply,
    Result,
)

_LENGTH = 8  # bytes at a safetensors file's beginning: how many of JSON follow
_NONE: Mapping[str, memoryview] = {}


def from_body(body: bytes) -> Reply:
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
