"""What a request may say beside its picture, and the text it becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from convlens.errors import RequestError

_OURS = {
    "explain": "call explain, predict or overlay",
    "accept": "choose the form of the reply by the client's form",
    "sent_at": "the client says it by itself",
}


class Asked(TypedDict, total=False):
    """The parameters of one request, each as docs/rest.md describes it; the server checks them.

    ``output`` is ["array"] unless said otherwise: maps come as numbers, to draw or to reckon with. ``target`` is a
    class by index or by label, or a neuron: {"layer": "blocks.2.0", "channel": 3}, with "y" and "x" or without.
    """

    topk: int
    target: int | str | Mapping[str, Any] | None
    methods: Sequence[str | Mapping[str, Any]]
    output: Sequence[Literal["array", "overlay", "heatmap"]]
    dtype: Literal["<f4", "<f2"]
    reduce: Literal["none", "abs_max", "sum"]
    size: Literal["model", "original"]
    neighbours: int
    thumbnails: bool
    deadline_ms: float
    seed: int
    request_id: str


def checked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the client's default; RequestError for what the client itself says to the server."""
    for name, instead in _OURS.items():
        if name in asked:
            raise RequestError(f"{name} is not a parameter of this client: {instead}", field=name)
    return {"output": ["array"], **asked}


def as_text(params: Mapping[str, Any]) -> bytes:
    """JSON, or RequestError naming what JSON cannot hold."""
    try:
        return json.dumps(dict(params), allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise RequestError(f"the parameters cannot be written as JSON: {error}", field="params") from error


def _plain(value: object) -> object:
    """Mappings and sequences of any kind, and numpy's numbers."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__}")
