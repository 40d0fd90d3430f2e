"""The published schemas: they are the code's own, they are valid, and real requests and replies obey them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from engines import engine, picture, replied, small_gallery
from image_files import saved
from openapi_spec_validator import validate

from convlens import explain
from convlens.errors import ConvLensError, TargetError
from convlens.protocol.encoding import encode_response
from convlens.protocol.requests import ApiRequest, parse_request
from convlens.protocol.responses import error_json
from convlens.serving import openapi

PUBLISHED = Path(__file__).parents[2] / "docs" / "schema"
TEXT = base64.b64encode(saved(picture(1), "PNG")).decode()
HEADERS = {"content-type": "application/json"}


def by_name(model: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**openapi.json_schema(), "$ref": f"#/$defs/{model}"})


def call(body: dict[str, Any]) -> ApiRequest:
    return parse_request({"body": body}, HEADERS)


def body(**params: Any) -> dict[str, Any]:
    return {"data": {"b64": TEXT}, "params": params}


def v2(**params: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": [TEXT]}], "parameters": params}


@pytest.mark.parametrize("name", ["schema.json", "openapi.json"])
def test_what_is_published_is_what_the_code_says(name: str, tmp_path: Path) -> None:
    openapi.write(tmp_path)
    assert (PUBLISHED / name).read_text() == (tmp_path / name).read_text(), (
        "run `.venv/bin/python -m convlens.serving.openapi docs/schema`"
    )


def test_the_documents_are_valid_by_their_own_standards() -> None:
    validate(json.loads((PUBLISHED / "openapi.json").read_text()))
    jsonschema.Draft202012Validator.check_schema(json.loads((PUBLISHED / "schema.json").read_text()))


FULL = {
    "methods": [
        {"method": "saliency", "id": "a"},
        {"method": "occlusion", "options": {"window": [8, 12], "stride": 4}, "target": "tiger cat"},
        "neighbours",
        {"method": "smoothgrad", "options": {"samples": 2}},
    ],
    "output": ["array", "overlay", "heatmap"],
    "neighbours": 2,
    "request_id": "r",
    "deadline_ms": 60_000,
    "sent_at": 1.8e9,
    "size": "original",
    "dtype": "<f2",
    "seed": 4,
    "evaluate": ["deletion", "insertion"],
}
# Each with the schema of its body and of its answer.
ASKED: dict[str, tuple[dict[str, Any], str, str]] = {
    "bare": (body(), "Body", "ReplyBody"),
    "everything": (body(**FULL), "Body", "ReplyBody"),
    "one curve": (body(explain=True, evaluate={"curves": ["insertion"], "steps": 3}), "Body", "ReplyBody"),
    "all methods": (body(methods=list(explain.available_methods())), "Body", "ReplyBody"),
    "v1": ({"instances": [TEXT, {"data": {"b64": TEXT}, "params": {"topk": 1}}]}, "V1Body", "V1Reply"),
    "v2": (v2(methods=["saliency"]), "V2Body", "V2Reply"),
}


@pytest.mark.parametrize("name", ASKED)
def test_real_requests_and_their_replies_obey_the_schemas(name: str, tmp_path: Path) -> None:
    given, asked, said = ASKED[name]
    by_name(asked).validate(given)
    found = call(given)
    answers = engine(gallery=small_gallery(tmp_path / "gallery"), max_cost=1e9).run(found.requests)
    out = encode_response(found, [replied(answer) for answer in answers])
    by_name(said).validate(json.loads(out.body))


@pytest.mark.parametrize("error", [ConvLensError("x"), TargetError("no class", field="methods.0.target")])
def test_errors_obey_their_schema(error: ConvLensError) -> None:
    by_name("ErrorBody").validate(error_json(error, request_id="r"))


REFUSED: dict[str, dict[str, Any]] = {
    "an unknown key": body(top_k=1),
    "another type": body(topk="5"),
    "out of bounds": body(topk=101),
    "an unknown method": body(methods=[{"method": "occlude"}]),
    "an unknown option": body(methods=[{"method": "saliency", "options": {"window": 3}}]),
    "an option out of bounds": body(methods=[{"method": "occlusion", "options": {"window": 0}}]),
    "an unknown curve": body(explain=True, evaluate=["removal"]),
    "one step": body(explain=True, evaluate={"steps": 1}),
    "too many methods": body(methods=["saliency"] * 33),
    "no data": {"params": {}},
    "no instances": {"instances": []},
    "a float tensor": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": ["a"]}]},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_schema_refuses_the_server_refuses(name: str) -> None:
    given = REFUSED[name]
    model = "V1Body" if "instances" in given else "V2Body" if "inputs" in given else "Body"
    assert not by_name(model).is_valid(given)
    with pytest.raises(ConvLensError) as caught:
        for answer in engine().run(call(given).requests):
            if isinstance(answer, ConvLensError):
                raise answer
    assert 400 <= caught.value.status < 500


def test_every_status_of_an_error_is_documented() -> None:
    def statuses(error: type[ConvLensError]) -> set[int]:
        return {error.status}.union(*(statuses(one) for one in error.__subclasses__()))

    assert statuses(ConvLensError) <= set(openapi.STATUSES)
