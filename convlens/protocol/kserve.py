"""KServe's inference protocols: bodies of version 1 (``instances``) and 2 (``inputs``), and the replies to them.

https://kserve.github.io/website/latest/modelserving/data_plane: version 1 knows a list of instances and a list of
predictions, version 2 named tensors with a datatype and a shape. One body may hold several images. The names,
docstrings and field descriptions of the models are part of the published schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.json_schema import SkipJsonSchema

from convlens.errors import ConvLensError, RequestError, near_matches
from convlens.protocol.arrays import ReplyModel
from convlens.protocol.params import add_field_prefix, require_few_keys
from convlens.protocol.responses import ReplyBody, dumps

# TorchServe can read these bodies itself (service_envelope), but then answers only the first request of a batch.
_MAX_IMAGES = 16  # in one body
# Of the binary data extension: for one output, and for all that do not say otherwise.
_BINARY, _BINARY_OUTPUT = "binary_data", "binary_data_output"
_MAX_ITEMS = 32  # of a shape, and of the outputs that are asked for
_CLOSED = ConfigDict(extra="forbid", frozen=True)

_OutputName = Literal["index", "label", "probability", "reply"]
Body = TypeVar("Body", bound=BaseModel)


class Base64(BaseModel):
    """Bytes as base64 text."""

    model_config = _CLOSED
    b64: str


class V1Instance(BaseModel):
    """One picture, with parameters of its own that go before the body's."""

    model_config = _CLOSED
    data: Base64 | str
    params: dict[str, Any] = Field(default_factory=dict)


class V1Body(BaseModel):
    """A request of version 1. An instance is an object, ``{"b64": …}`` or base64 text."""

    model_config = _CLOSED
    instances: Annotated[list[V1Instance | Base64 | str], Field(min_length=1, max_length=_MAX_IMAGES)]
    params: dict[str, Any] = Field(default_factory=dict)


class V2Tensor(BaseModel):
    """Encoded pictures (PNG, JPEG, …), each an element of base64 text."""

    model_config = _CLOSED
    name: str
    datatype: Literal["BYTES"]
    shape: list[int]
    # Elements that came as binary data are the pictures' own bytes.
    data: Annotated[list[str | SkipJsonSchema[bytes]], Field(min_length=1, max_length=_MAX_IMAGES)]
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("data", mode="before")
    @classmethod
    def _flat(cls, data: Any) -> Any:
        # The protocol lets clients nest an array by its shape, here [images, 1], or write it flat.
        if isinstance(data, list) and all(isinstance(row, list) and len(row) == 1 for row in data):
            return [element for row in data for element in row]
        return data


class V2Body(BaseModel):
    """A request of version 2: one input tensor, and our params as its ``parameters``.

    ``outputs`` may name some of those we have: index, label, probability, reply.
    """

    model_config = _CLOSED
    id: str = ""
    model_name: str = Field("", description="As KServe's clients send it; the path says which model answers.")
    inputs: Annotated[list[V2Tensor], Field(min_length=1, max_length=1)]
    parameters: dict[str, Any] = Field(default_factory=dict)
    outputs: list[dict[str, Any]] | None = None


class V1Reply(ReplyModel):
    """The answer to a KServe v1 body: a reply for each instance."""

    predictions: list[ReplyBody]


class V2Output(ReplyModel):
    """A tensor: index INT64, label BYTES, probability FP64 of shape (pictures, topk); reply BYTES (JSON text)."""

    name: _OutputName
    datatype: Literal["INT64", "BYTES", "FP64"]
    shape: list[int]
    data: list[int | float | str]


class V2Reply(ReplyModel):
    """The answer to a KServe v2 body."""

    model_name: str
    model_version: str
    id: str
    outputs: list[V2Output]


_OUTPUTS: tuple[_OutputName, ...] = get_args(_OutputName)


@dataclass(frozen=True)
class Envelope:
    """How the replies to one body go back: as they are, or wrapped as a version of the protocol says.

    ``binary``: the outputs whose tensors follow the JSON as bytes.
    """

    version: Literal["", "v1", "v2"] = ""
    id: str = ""
    outputs: tuple[_OutputName, ...] = _OUTPUTS
    binary: frozenset[_OutputName] = frozenset()

    def locate(self, error: ConvLensError, position: int) -> ConvLensError:
        """The error of one of several images, its field pointing at that image."""
        place = {"v1": f"instances.{position}", "v2": f"inputs.0.data.{position}"}.get(self.version, "")
        return add_field_prefix(error, place)

    def wrap(self, replies: Sequence[ReplyBody]) -> ReplyModel:
        """The body of the answer with the replies in their order."""
        if self.version == "v1":
            return V1Reply(predictions=list(replies))
        return self._v2(replies) if self.version == "v2" else replies[0]

    def _v2(self, replies: Sequence[ReplyBody]) -> V2Reply:
        predictions = [prediction for reply in replies for prediction in reply.predictions]
        shape = [len(replies), len(replies[0].predictions)]
        outputs = {
            "index": _tensor("index", "INT64", shape, [one.index for one in predictions]),
            "label": _tensor("label", "BYTES", shape, [one.label for one in predictions]),
            "probability": _tensor("probability", "FP64", shape, [one.probability for one in predictions]),
        }
        if "reply" in self.outputs:  # megabytes of text, where maps are asked for
            texts = [dumps(reply.json_object()) for reply in replies]
            outputs["reply"] = _tensor("reply", "BYTES", [len(texts)], texts)
        model = replies[0].model
        return V2Reply(
            model_name=model.name,
            model_version=model.version,
            id=self.id,
            outputs=[outputs[name] for name in self.outputs],
        )


NO_ENVELOPE = Envelope()


def _tensor(
    name: _OutputName, datatype: Literal["INT64", "BYTES", "FP64"], shape: list[int], data: Sequence[int | float | str]
) -> V2Output:
    return V2Output(name=name, datatype=datatype, shape=shape, data=list(data))


def unwrap_body(body: Mapping[str, Any]) -> tuple[Envelope, list[tuple[str, dict[str, Any]]]]:
    """The envelope, and for each image its place in the body and its ``data`` and ``params``.

    A body that is not KServe's is its only image's, at no place. Raises RequestError.
    """
    require_few_keys(body, depth=3 if "instances" in body or "inputs" in body else 0)
    if "instances" in body:
        v1 = _validated(V1Body, body)
        return Envelope("v1"), [
            (f"instances.{n}", _instance_parts(instance, v1.params)) for n, instance in enumerate(v1.instances)
        ]
    if "inputs" not in body:
        return NO_ENVELOPE, [("", dict(body))]
    _require_short_lists(body)
    v2 = _validated(V2Body, body)
    (tensor,) = v2.inputs
    if tensor.shape not in ([len(tensor.data)], [len(tensor.data), 1]):
        raise RequestError(
            f"inputs.0: shape {tensor.shape} does not fit {len(tensor.data)} elements; "
            f"BYTES holds one encoded image an element: [{len(tensor.data)}]",
            field="inputs.0.shape",
        )
    params = v2.parameters | tensor.parameters
    binary_by_default = _flag(params.pop(_BINARY_OUTPUT, False), f"parameters.{_BINARY_OUTPUT}")
    images = [
        (f"inputs.0.data.{n}", {"data": element, "params": _all_params(params)})
        for n, element in enumerate(tensor.data)
    ]
    return Envelope("v2", v2.id, *_outputs(v2.outputs, binary_by_default)), images


def is_kserve_body(body: Any) -> bool:
    """Whether this is a body of KServe's protocols, be it one that cannot be read."""
    if isinstance(body, bytes | bytearray):
        return body[:1] == b"{" and (b'"inputs"' in body or b'"instances"' in body)
    return isinstance(body, dict) and not {"inputs", "instances"}.isdisjoint(body)


def _require_short_lists(body: Mapping[str, Any]) -> None:
    """RequestError for a shape or list of outputs much too long, before pydantic makes an error of each item."""
    inputs = body["inputs"] if isinstance(body["inputs"], list) else []
    lists = {"outputs": body.get("outputs")}
    lists |= {
        f"inputs.{n}.shape": tensor.get("shape") for n, tensor in enumerate(inputs[:1]) if isinstance(tensor, dict)
    }
    for place, items in lists.items():
        if isinstance(items, list) and len(items) > _MAX_ITEMS:
            raise RequestError(f"{place} has {len(items)} items; at most {_MAX_ITEMS} are allowed", field=place)


def _instance_parts(instance: V1Instance | Base64 | str, shared: Mapping[str, Any]) -> dict[str, Any]:
    data, own = (instance.data, instance.params) if isinstance(instance, V1Instance) else (instance, {})
    return {"data": data if isinstance(data, str) else data.model_dump(), "params": {**shared, **own}}


def _all_params(params: dict[str, Any]) -> Any:
    """The parameters, or the JSON text of all of them in the one named ``params``."""
    # The protocol's parameters are numbers, texts and booleans, and many clients can send nothing else.
    if "params" not in params:
        return params
    if len(params) > 1:
        others = ", ".join(sorted(str(name)[:100] for name in params.keys() - {"params"}))
        raise RequestError(
            f"parameters holds params and beside it {others}; send all of them in params, as JSON text, or none",
            field="parameters.params",
        )
    return params["params"]


def _outputs(
    requested: list[dict[str, Any]] | None, binary_by_default: bool
) -> tuple[tuple[_OutputName, ...], frozenset[_OutputName]]:
    """The names of the outputs asked for, all where none is named, and which of them go out as binary data."""
    if not requested:
        return _OUTPUTS, frozenset(_OUTPUTS if binary_by_default else ())
    binary: dict[_OutputName, bool] = {}
    for n, output in enumerate(requested):
        name = next((known for known in _OUTPUTS if known == output.get("name")), None)
        if name is None:
            text = str(output.get("name"))[:100]
            hint = near_matches(text, _OUTPUTS) or ";"
            raise RequestError(f"no output {text!r}{hint} there are: {', '.join(_OUTPUTS)}", field=f"outputs.{n}.name")
        binary[name] = _is_binary(output, f"outputs.{n}.parameters", binary_by_default)
    return tuple(binary), frozenset(name for name, chosen in binary.items() if chosen)


def _is_binary(output: Mapping[str, Any], place: str, default: bool) -> bool:
    parameters = output.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError(f"{place} must be an object", field=place)
    for name in parameters:
        if name != _BINARY:
            raise RequestError(
                f"{place}: no parameter {str(name)[:100]!r} of an output; there is: {_BINARY}",
                field=f"{place}.{str(name)[:100]}",
            )
    return _flag(parameters.get(_BINARY, default), f"{place}.{_BINARY}")


def _flag(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{place} must be true or false, got {str(value)[:100]!r}", field=place)
    return value


def _validated(model: type[Body], body: Mapping[str, Any]) -> Body:
    try:
        return model.model_validate(dict(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:100] for part in first["loc"] if part not in _UNION_BRANCHES)
        raise RequestError(f"{place}: {first['msg'].lower()}; a KServe {_EXAMPLES[model]}", field=place) from error


_UNION_BRANCHES = ("V1Instance", "Base64", "str", "bytes")  # pydantic names them in the place of an error
_EXAMPLES: dict[type[BaseModel], str] = {
    V1Body: 'v1 body is like {"instances": [{"data": {"b64": "…"}, "params": {…}}]}',
    V2Body: 'v2 body is like {"inputs": [{"name": "data", "datatype": "BYTES", "shape": [1], "data": ["<base64>"]}], '
    '"parameters": {…}}',
}
