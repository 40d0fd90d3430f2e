"""KServe's inference protocols: bodies of version 1 (``instances``) and 2 (``inputs``), and the replies to them.

https://kserve.github.io/website/latest/modelserving/data_plane: version 1 knows a list of instances and a list of
predictions, version 2 named tensors with a datatype and a shape. One body may hold several pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convlens.errors import ConvLensError, RequestError, near_matches

MAX_IMAGES = 16  # pictures in one body
Version = Literal["", "v1", "v2"]

Body = TypeVar("Body", bound=BaseModel)
_BODY = ConfigDict(extra="forbid", frozen=True)


class Base64(BaseModel):
    """Bytes as base64 text."""

    model_config = _BODY
    b64: str


class V1Instance(BaseModel):
    """One picture, with parameters of its own that go before the body's."""

    model_config = _BODY
    data: Base64 | str
    params: dict[str, Any] = Field(default_factory=dict)


class V1Body(BaseModel):
    """A request of version 1. An instance is an object, ``{"b64": …}`` or base64 text."""

    model_config = _BODY
    instances: Annotated[list[V1Instance | Base64 | str], Field(min_length=1, max_length=MAX_IMAGES)]
    params: dict[str, Any] = Field(default_factory=dict)


class V2Tensor(BaseModel):
    """Encoded pictures (PNG, JPEG, …), each an element of base64 text."""

    model_config = _BODY
    name: str
    datatype: Literal["BYTES"]
    shape: list[int]
    data: Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)]
    parameters: dict[str, Any] = Field(default_factory=dict)


class V2Body(BaseModel):
    """A request of version 2: one input tensor, and our params as its ``parameters``.

    ``outputs`` may name some of those we have: index, label, probability, reply.
    """

    model_config = _BODY
    id: str = ""
    inputs: Annotated[list[V2Tensor], Field(min_length=1, max_length=1)]
    parameters: dict[str, Any] = Field(default_factory=dict)
    outputs: list[dict[str, Any]] | None = None


OUTPUTS = ("index", "label", "probability", "reply")


@dataclass(frozen=True)
class Envelope:
    """How the replies to one body go back: as they are, or in a version's wrapping."""

    version: Version = ""
    id: str = ""
    outputs: tuple[str, ...] = OUTPUTS

    def placed(self, error: ConvLensError, position: int) -> ConvLensError:
        """The error of one of several pictures, its field pointing at that picture."""
        place = {"v1": f"instances.{position}", "v2": f"inputs.0.data.{position}"}.get(self.version)
        error.field = ".".join(part for part in (place, error.field) if part) or None
        return error


PLAIN = Envelope()


def kserve_version(body: Mapping[str, Any]) -> Version:
    if "instances" in body:
        return "v1"
    return "v2" if "inputs" in body else ""


def unwrap_body(body: Mapping[str, Any]) -> tuple[Envelope, list[tuple[str, dict[str, Any]]]]:
    """The envelope, and for each picture its place in the body and its ``data`` and ``params``. Raises RequestError."""
    if kserve_version(body) == "v1":
        v1 = _checked(V1Body, body)
        return Envelope("v1"), [(f"instances.{n}", _instance(one, v1.params)) for n, one in enumerate(v1.instances)]
    v2 = _checked(V2Body, body)
    (tensor,) = v2.inputs
    if tensor.shape != [len(tensor.data)]:
        raise RequestError(
            f"inputs.0: shape {tensor.shape} does not fit {len(tensor.data)} elements; "
            f"BYTES holds one encoded picture an element: [{len(tensor.data)}]",
            field="inputs.0.shape",
        )
    params = v2.parameters | tensor.parameters
    pictures = [(f"inputs.0.data.{n}", {"data": text, "params": params}) for n, text in enumerate(tensor.data)]
    return Envelope("v2", v2.id, _outputs(v2.outputs)), pictures


def wrap_replies(envelope: Envelope, replies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The body of the answer: the replies in their order, in the envelope's form."""
    if envelope.version == "v1":
        return {"predictions": list(replies)}
    model, rows = replies[0]["model"], [reply["predictions"] for reply in replies]
    tensors = {
        "index": ("INT64", [one["index"] for row in rows for one in row]),
        "label": ("BYTES", [one["label"] for row in rows for one in row]),
        "probability": ("FP64", [one["probability"] for row in rows for one in row]),
    }
    shape = [len(rows), len(rows[0])]
    outputs: dict[str, dict[str, Any]] = {
        name: {"name": name, "datatype": datatype, "shape": shape, "data": data}
        for name, (datatype, data) in tensors.items()
    }
    texts = [json.dumps(reply, allow_nan=False, separators=(",", ":")) for reply in replies]
    outputs["reply"] = {"name": "reply", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
    return {
        "model_name": model["name"],
        "model_version": model["version"],
        "id": envelope.id,
        "outputs": [outputs[name] for name in envelope.outputs],
    }


def _instance(one: V1Instance | Base64 | str, shared: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(one, V1Instance):
        data = one.data if isinstance(one.data, str) else one.data.model_dump()
        return {"data": data, "params": {**shared, **one.params}}
    return {"data": one if isinstance(one, str) else one.model_dump(), "params": dict(shared)}


def _outputs(asked: list[dict[str, Any]] | None) -> tuple[str, ...]:
    if not asked:
        return OUTPUTS
    names = [one.get("name") for one in asked]
    for n, name in enumerate(names):
        if name not in OUTPUTS:
            text = str(name)[:100]
            hint = near_matches(text, OUTPUTS) or ";"
            raise RequestError(f"no output {text!r}{hint} there are: {', '.join(OUTPUTS)}", field=f"outputs.{n}.name")
    return tuple(dict.fromkeys(str(name) for name in names))


def _checked(model: type[Body], body: Mapping[str, Any]) -> Body:
    try:
        return model.model_validate(dict(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:100] for part in first["loc"] if part not in _BRANCHES)
        form = "KServe v1" if model is V1Body else "KServe v2"
        raise RequestError(
            f"{place}: {first['msg'].lower()}; a {form} body is like {_EXAMPLES[form]}", field=place
        ) from error


_BRANCHES = ("V1Instance", "Base64", "str")  # of unions, which pydantic names in the place of an error
_EXAMPLES = {
    "KServe v1": '{"instances": [{"data": {"b64": "…"}, "params": {…}}]}',
    "KServe v2": '{"inputs": [{"name": "data", "datatype": "BYTES", "shape": [1], "data": ["<base64>"]}], '
    '"parameters": {…}}',
}
