"""Replies on the wire: one set of models, built from the library's values and parsed back into them.

``to_json`` and ``from_json`` are the ways in and out; ``parse_reply`` also reads a reply's safetensors file. Imports no
torch, so that a client need not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from convlens.errors import ConvLensError, ServerError
from convlens.protocol.arrays import NO_ARRAYS, ReplyModel
from convlens.protocol.explanations import ExplanationBody
from convlens.protocol.params import Params
from convlens.types import Floats, Placement, Prediction, Reply

_MAX_MESSAGE, _MAX_FIELD = 2000, 200  # characters: what an error quotes of a request must not swell the reply
_HEADER_LENGTH_BYTES = 8  # a safetensors file begins with the length of its JSON header, in little-endian


def to_json(reply: Reply, params: Params) -> dict[str, Any]:
    """The reply's JSON object, with arrays in the dtype, reduction and size of ``params``."""
    return ReplyBody.from_reply(reply, params).json_object()


def from_json(body: Any, attached: Mapping[str, memoryview] = NO_ARRAYS) -> Reply:
    """The Reply in the object that ``to_json`` wrote, but for what dtype and reduction took away.

    ``attached``: the raw bytes of the arrays that the JSON only names. Raises ServerError for anything else.
    """
    try:
        return ReplyBody.model_validate(body).to_reply(attached)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ServerError(f"this is no reply of a ConvLens server: {place}: {first['msg']}") from error
    except (KeyError, ValueError) as error:
        raise ServerError(f"this is no reply of a ConvLens server: {error!r}") from error


def parse_reply(body: bytes) -> Reply:
    """The Reply in the body of an HTTP or gRPC answer, JSON or a safetensors file; ServerError for anything else."""
    # The upper bytes of a header's length are zero in any file that exists; JSON text has no zero byte.
    if body[_HEADER_LENGTH_BYTES - 1 : _HEADER_LENGTH_BYTES] == b"\0":
        return _parse_safetensors(body)
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServerError(f"this is no reply of a ConvLens server, but starts with {body[:60]!r}") from error
    return from_json(parsed)


def _parse_safetensors(body: bytes) -> Reply:
    # By hand and not by the library: its load() copies every array, while these views copy nothing.
    start = _HEADER_LENGTH_BYTES + int.from_bytes(body[:_HEADER_LENGTH_BYTES], "little")
    try:
        header = json.loads(body[_HEADER_LENGTH_BYTES:start])
        reply = json.loads(header.pop("__metadata__")["reply"])
        spans = {name: tensor["data_offsets"] for name, tensor in header.items()}
        data = memoryview(body)[start:]
        attached = {name: data[begin:end] for name, (begin, end) in spans.items()}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ServerError(f"this is no reply of a ConvLens server: {error!r}") from error
    return from_json(reply, attached)


def error_json(error: ConvLensError, *, request_id: str = "", kserve: bool = False) -> dict[str, Any]:
    """The error's JSON object: code, type, message, field, request_id. What it quotes of a request is cut short.

    ``kserve``: the message stands under ``error`` as well, where clients of KServe's protocols look for it.
    """
    body = ErrorBody(
        code=error.status,
        type=type(error).__name__,
        message=_shortened(error.message, _MAX_MESSAGE),
        field=error.field and _shortened(error.field, _MAX_FIELD),
        request_id=request_id,
    )
    return {"error": body.message, **body.json_object()} if kserve else body.json_object()


def dumps(body: Mapping[str, Any]) -> str:
    """Strict JSON; ValueError for NaN and infinity."""
    # Python would write NaN, which is no JSON, and TorchServe would send it with a 200.
    return json.dumps(body, allow_nan=False, ensure_ascii=True, separators=(",", ":"))


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


# The names, docstrings and field descriptions of the models below are part of the published schema.


class ModelInfo(ReplyModel):
    """Which model answered."""

    name: str
    version: str
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")


class PlacementBody(ReplyModel):
    """Where in the upright picture the model looked, in the picture's pixels."""

    size: tuple[int, int] = Field(description="Width and height of the picture.")
    box: tuple[float, float, float, float] = Field(description="Left, top, right, bottom of what the model saw.")


class PredictionBody(ReplyModel):
    """One class; ``probability`` is by the reply's ``activation``, and with "none" the model's output as it is."""

    index: int = Field(ge=0)
    label: str
    probability: float
    logit: float


class ReplyBody(ReplyModel):
    """The answer to one request."""

    model: ModelInfo
    request_id: str
    device: str
    runtime: str
    activation: str = Field(
        description="What makes probabilities: softmax over all classes, sigmoid of each, or none (outputs as is)."
    )
    placement: PlacementBody | None
    predictions: list[PredictionBody]
    explanations: list[ExplanationBody]
    warnings: list[str]
    timing_ms: dict[str, float]

    @model_validator(mode="before")
    @classmethod
    def _older_server(cls, body: Any) -> Any:
        # As in MetaBody: servers sent no placement at first, and had no activation but softmax.
        return {"placement": None, "activation": "softmax", **body} if isinstance(body, Mapping) else body

    @classmethod
    def from_reply(cls, reply: Reply, params: Params, *, file: dict[str, Floats] | None = None) -> Self:
        """With arrays in base64, or put into ``file`` by name."""
        return cls(
            model=ModelInfo(name=reply.model_name, version=reply.model_version, weights_sha256=reply.weights_sha256),
            request_id=reply.request_id,
            device=reply.device,
            runtime=reply.runtime,
            activation=reply.activation,
            placement=PlacementBody.model_validate(reply.placement) if reply.placement else None,
            predictions=[PredictionBody.model_validate(prediction) for prediction in reply.predictions],
            explanations=[
                ExplanationBody.from_explanation(explanation, params, reply.placement, file)
                for explanation in reply.explanations
            ],
            warnings=list(reply.warnings),
            timing_ms=dict(reply.timing_ms),
        )

    def to_reply(self, attached: Mapping[str, memoryview] = NO_ARRAYS) -> Reply:
        """Raises KeyError or ValueError where an array's data are missing or damaged."""
        return Reply(
            model_name=self.model.name,
            model_version=self.model.version,
            weights_sha256=self.model.weights_sha256,
            request_id=self.request_id,
            device=self.device,
            runtime=self.runtime,
            activation=self.activation,
            predictions=tuple(Prediction(**dict(body)) for body in self.predictions),
            explanations=tuple(body.to_explanation(attached) for body in self.explanations),
            warnings=tuple(self.warnings),
            timing_ms=self.timing_ms,
            placement=Placement(self.placement.size, self.placement.box) if self.placement else None,
        )


class ErrorBody(ReplyModel):
    """What a refused request gets; ``field`` is the place in the request that was at fault."""

    code: int = Field(ge=400, le=599)
    type: str
    message: str
    field: str | None
    request_id: str


class KServeErrorBody(ErrorBody):
    """What a refused request of KServe's protocols gets; ``error`` is the message, where those clients look for it."""

    error: str
