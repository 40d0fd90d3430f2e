"""The API as JSON Schema and OpenAPI, made from the models that validate requests and build replies.

``python -m convlens.serving.openapi docs/schema`` writes the files. Tests compare them with the code, and real requests
and replies with them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from convlens import __version__, explain
from convlens.engine.method_calls import options_model
from convlens.protocol.kserve import Base64, V1Body, V1Reply, V2Body, V2Reply
from convlens.protocol.negotiation import JSON, Media
from convlens.protocol.params import Params
from convlens.protocol.responses import ErrorBody, KServeErrorBody, ReplyBody

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Body(BaseModel):
    """A JSON request: the picture as base64, and what is asked about it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    data: Base64 | str = Field(description="An encoded picture (JPEG, PNG, WebP, GIF, BMP, TIFF) in base64.")
    params: Params = Field(default_factory=Params)


_REQUESTS: tuple[type[BaseModel], ...] = (Body, V1Body, V2Body)
_REPLIES: tuple[type[BaseModel], ...] = (ReplyBody, V1Reply, V2Reply, ErrorBody, KServeErrorBody)
STATUSES = {
    400: "not a picture, or a damaged one; also TorchServe's own answer to a missing or expired token",
    406: "Accept names no form that a reply can take",
    413: "more bytes or pixels than allowed",
    415: "not sent as a picture",
    422: "parameters that cannot be honoured, or more work than the server allows; message and field say which",
    500: "a fault of the server or its model",
    503: "too much to do: try again",
    504: "the deadline passed before an answer was there",
    507: "out of memory, also with smaller batches",
}


def json_schema() -> dict[str, Any]:
    """All bodies and each method's options, under ``$defs``."""
    return {"$schema": _DIALECT, "title": "ConvLens", "$defs": _definitions("#/$defs/{model}")}


def openapi() -> dict[str, Any]:
    """The inference API as an OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ConvLens on TorchServe",
            "version": __version__,
            "description": "Predictions together with what in the picture they rest on.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:8080"}],
        "security": [{"token": []}],
        "paths": {path: {"post": _operation(path)} for path in _PATHS},
        "components": {
            "schemas": _definitions("#/components/schemas/{model}"),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


# Path -> its operation's name, what it does, and the body of request and reply in JSON.
_PATHS: dict[str, tuple[str, str, type[BaseModel], type[BaseModel]]] = {
    "/predictions/{name}": ("predict", "Predictions, and the methods that params name.", Body, ReplyBody),
    "/predictions/{name}/{version}": ("predict_version", "The same of one version.", Body, ReplyBody),
    "/explanations/{name}": ("explain", "Predictions and the default explanations.", Body, ReplyBody),
    "/explanations/{name}/{version}/{method}": ("explain_by", "Predictions and one method.", Body, ReplyBody),
    "/v1/models/{name}:predict": ("kserve_v1", "KServe's protocol, version 1.", V1Body, V1Reply),
    "/v1/models/{name}:explain": ("kserve_v1_explain", "The same with the default explanations.", V1Body, V1Reply),
    "/v2/models/{name}/infer": ("kserve_v2", "KServe's protocol, version 2.", V2Body, V2Reply),
    "/v2/models/{name}/explain": ("kserve_v2_explain", "The same with the default explanations.", V2Body, V2Reply),
}


def _operation(path: str) -> dict[str, Any]:
    operation, summary, request, reply = _PATHS[path]
    names = [part.split("}")[0] for part in path.split("{")[1:]]
    plain = request is Body
    return {
        "operationId": operation,
        "summary": summary,
        "parameters": [{"name": name, "in": "path", "required": True, "schema": _name_schema(name)} for name in names],
        "requestBody": {"required": True, "content": _request_content(request, plain=plain)},
        "responses": {
            "200": {"description": "the answer", "content": _reply_content(reply, plain=plain)},
            **{str(code): _error(text, plain=plain) for code, text in STATUSES.items()},
        },
    }


def _name_schema(name: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(explain.available_methods())} if name == "method" else {"type": "string"}


def _request_content(request: type[BaseModel], *, plain: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _reference(request)}}
    if not plain:
        return content
    binary = {"type": "string", "contentMediaType": "application/octet-stream"}
    form = {"type": "object", "required": ["data"], "properties": {"data": binary, "params": _reference(Params)}}
    encoding = {"params": {"contentType": "application/json"}}
    images: dict[str, Any] = {media: {"schema": {}} for media in ("image/*", "application/octet-stream")}
    return content | images | {"multipart/form-data": {"schema": form, "encoding": encoding}}


def _reply_content(reply: type[BaseModel], *, plain: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _reference(reply)}}
    files = [media for media in get_args(Media) if media != JSON]
    return content | ({media: {"schema": {}} for media in files} if plain else {})


def _error(text: str, *, plain: bool) -> dict[str, Any]:
    body = ErrorBody if plain else KServeErrorBody
    return {"description": text, "content": {"application/json": {"schema": _reference(body)}}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _definitions(template: str) -> dict[str, Any]:
    """Requests as they are read, replies as they are written, and every method's options."""
    names = explain.available_methods()
    requests = [(model, "validation") for model in (*_REQUESTS, Params, *map(options_model, names))]
    replies = [(model, "serialization") for model in _REPLIES]
    _, schema = models_json_schema([*requests, *replies], ref_template=template)  # type: ignore[list-item]
    definitions = schema["$defs"]
    # The parameters' model takes any name, because methods are registered at run time; the documents list them.
    name_schema = {"enum": list(names), "type": "string"}
    definitions["MethodParams"]["allOf"] = [_options_of(name, template) for name in names]
    definitions["MethodParams"]["properties"]["method"] = name_schema
    items = definitions["Params"]["properties"]["methods"]["anyOf"][0]["items"]
    items["anyOf"] = [name_schema, *(branch for branch in items["anyOf"] if "$ref" in branch)]
    return dict(sorted(definitions.items()))


def _options_of(method: str, template: str) -> dict[str, Any]:
    # pydantic cannot say this: its model of the options depends on the value of another field.
    options = {"$ref": template.format(model=options_model(method).__name__)}
    return {
        "if": {"properties": {"method": {"const": method}}, "required": ["method"]},
        "then": {"properties": {"options": options}},
    }


def write(folder: Path) -> list[Path]:
    """Write ``schema.json`` and ``openapi.json`` into the folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = {"schema.json": json_schema(), "openapi.json": openapi()}
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [folder / name for name in documents]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
