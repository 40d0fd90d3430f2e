"""What a server and a model say of themselves in KServe's protocols (the Open Inference Protocol's metadata).

TorchServe has no such routes for models: there a JSON body, ``{"describe": "metadata"}`` or ``{"describe": "ready"}``,
asks the model itself, and a proxy turns the protocol's GET into one.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from convlens.errors import RequestError, near_matches
from convlens.protocol.arrays import ReplyModel

Aspect = Literal["metadata", "ready"]
_KEY = "describe"


class TensorMetadata(ReplyModel):
    """A tensor of requests or replies; -1 is a dimension of any size."""

    name: str
    datatype: Literal["BYTES", "INT64", "FP64"]
    shape: list[int]


class ModelMetadata(ReplyModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(ReplyModel):
    """That a model answers."""

    name: str
    ready: bool


def described_aspect(body: Any) -> Aspect | None:
    """What a body asks the model to say of itself; None for every other body. Raises RequestError for another word."""
    if not isinstance(body, dict) or _KEY not in body or not {"data", "instances", "inputs"}.isdisjoint(body):
        return None
    for aspect in get_args(Aspect):
        if body == {_KEY: aspect}:
            return aspect  # type: ignore[no-any-return]
    text = str(body[_KEY])[:100]
    hint = near_matches(text, get_args(Aspect)) or ";"
    raise RequestError(f"nothing to describe by {text!r}{hint} there are: {', '.join(get_args(Aspect))}", field=_KEY)


def describe_model(aspect: Aspect, *, name: str, version: str, platform: str) -> ReplyModel:
    """The answer of a model that is there."""
    if aspect == "ready":
        return ModelReady(name=name, ready=True)
    images, topk = -1, -1
    return ModelMetadata(
        name=name,
        versions=[version],
        platform=platform,
        inputs=[TensorMetadata(name="data", datatype="BYTES", shape=[images])],
        outputs=[
            TensorMetadata(name="index", datatype="INT64", shape=[images, topk]),
            TensorMetadata(name="label", datatype="BYTES", shape=[images, topk]),
            TensorMetadata(name="probability", datatype="FP64", shape=[images, topk]),
            TensorMetadata(name="reply", datatype="BYTES", shape=[images]),
        ],
    )
