"""KServe's bodies, versions 1 and 2, by the published protocol, and what goes back."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from engines import engine, picture, replied
from image_files import saved

from convlens.errors import ConvLensError
from convlens.protocol.encoding import encode_response
from convlens.protocol.requests import ApiRequest, parse_request

FILES = [saved(picture(n), "PNG") for n in range(3)]
TEXTS = [base64.b64encode(file).decode() for file in FILES]
HEADERS = {"content-type": "application/json"}


def read(body: dict[str, Any], **options: Any) -> ApiRequest:
    return parse_request({"body": body}, options.pop("headers", HEADERS), **options)


def refusal(body: dict[str, Any], **options: Any) -> ConvLensError:
    with pytest.raises(ConvLensError) as caught:
        read(body, **options)
    return caught.value


def answer(body: dict[str, Any]) -> Any:
    call = read(body)
    out = encode_response(call, [replied(one) for one in engine().run(call.requests)])
    assert out.media == "application/json"
    return json.loads(out.body)


def v2(*texts: str, **more: Any) -> dict[str, Any]:
    tensor = {"name": "data", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
    return {"inputs": [tensor], **more}


@pytest.mark.parametrize(
    "instance",
    [{"data": {"b64": TEXTS[1]}}, {"data": TEXTS[1]}, {"b64": TEXTS[1]}, TEXTS[1], {"data": TEXTS[1], "params": {}}],
)
def test_an_instance_of_v1_is_an_object_or_base64(instance: Any) -> None:
    (request,) = read({"instances": [instance]}).requests
    np.testing.assert_array_equal(np.asarray(request.image), np.asarray(picture(1)))


def test_v1_answers_each_instance_as_if_it_had_come_alone() -> None:
    instances = [{"data": text, "params": {"topk": n + 1}} for n, text in enumerate(TEXTS)]
    body = answer({"instances": instances, "params": {"methods": ["saliency"], "topk": 6}})
    assert list(body) == ["predictions"]
    for n, result in enumerate(body["predictions"]):
        (alone,) = engine().run(parse_request({"data": FILES[n], "params": {"topk": n + 1}}, {}).requests)
        assert [one["label"] for one in result["predictions"]] == [one.label for one in replied(alone).predictions]
        assert [one["id"] for one in result["explanations"]] == ["saliency"]


def test_an_instances_own_params_go_before_the_bodys() -> None:
    call = read({"instances": [{"data": TEXTS[0], "params": {"topk": 2}}, TEXTS[1]], "params": {"topk": 4, "seed": 3}})
    assert [(one.params.topk, one.params.seed) for one in call.requests] == [(2, 3), (4, 3)]


def test_v2_answers_in_named_tensors_with_datatype_and_shape() -> None:
    body = answer(v2(*TEXTS, id="call-7", parameters={"topk": 2, "methods": ["saliency"]}))
    assert (body["model_name"], body["model_version"], body["id"]) == ("convlens", "1.0", "call-7")
    outputs = {one["name"]: one for one in body["outputs"]}
    assert {name: (one["datatype"], one["shape"]) for name, one in outputs.items()} == {
        "index": ("INT64", [3, 2]),
        "label": ("BYTES", [3, 2]),
        "probability": ("FP64", [3, 2]),
        "reply": ("BYTES", [3]),
    }
    replies = [json.loads(text) for text in outputs["reply"]["data"]]
    for name in ("index", "label", "probability"):
        assert outputs[name]["data"] == [one[name] for reply in replies for one in reply["predictions"]]
    for file, reply in zip(FILES, replies, strict=True):
        (alone,) = engine().run(parse_request({"data": file}, {}).requests)
        assert [one["index"] for one in reply["predictions"]] == [one.index for one in replied(alone).predictions[:2]]
        assert [one["id"] for one in reply["explanations"]] == ["saliency"]


def test_v2_sends_only_the_outputs_that_are_asked_for() -> None:
    body = answer(v2(TEXTS[0], outputs=[{"name": "probability"}, {"name": "label"}]))
    assert [one["name"] for one in body["outputs"]] == ["probability", "label"]


def test_the_route_asks_for_explanations_of_every_picture() -> None:
    call = read({"instances": TEXTS}, explain=True)
    assert [one.params.explain for one in call.requests] == [True] * 3
    call = read(v2(*TEXTS), path_method="grad_cam")
    assert [[method.method for method in one.params.methods or []] for one in call.requests] == [["grad_cam"]] * 3


BAD: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "no instances": ({"instances": []}, 422, "instances", "at least 1 item"),
    "too many instances": ({"instances": [TEXTS[0]] * 17}, 422, "instances", "at most 16 items"),
    "instances is no list": ({"instances": {"b64": TEXTS[0]}}, 422, "instances", "valid list"),
    "an instance of nothing": ({"instances": [TEXTS[0], {}]}, 422, "instances.1.data", "required"),
    "an instance with other keys": ({"instances": [{"data": TEXTS[0], "x": 1}]}, 422, "instances.0.x", "not permitted"),
    "an instance that is no picture": ({"instances": [TEXTS[0], "aGVsbG8="]}, 400, "instances.1", "not an image"),
    "bad params of one": (
        {"instances": [TEXTS[0], {"data": TEXTS[1], "params": {"topk": 0}}]},
        422,
        "instances.1.topk",
        "greater than or equal to 1",
    ),
    "params of one nested as deeply as JSON may be": (
        {"instances": [TEXTS[0], {"data": TEXTS[1], "params": {"topk": json.loads("[" * 900 + "]" * 900)}}]},
        422,
        "instances.1.topk",
        "valid integer",
    ),
    "other keys beside": ({"instances": [TEXTS[0]], "signature_name": "x"}, 422, "signature_name", "not permitted"),
    "no inputs": ({"inputs": []}, 422, "inputs", "at least 1 item"),
    "two inputs": ({"inputs": v2(TEXTS[0])["inputs"] * 2}, 422, "inputs", "at most 1 item"),
    "a float tensor": (
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": ["a"]}]},
        422,
        "inputs.0.datatype",
        "'bytes'",
    ),
    "a wrong shape": (
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [2, 1], "data": [TEXTS[0]]}]},
        422,
        "inputs.0.shape",
        "does not fit 1 elements",
    ),
    "an output there is not": (v2(TEXTS[0], outputs=[{"name": "lable"}]), 422, "outputs.0.name", "did you mean label"),
    "a parameter of an output there is not": (
        v2(TEXTS[0], outputs=[{"name": "label", "parameters": {"classification": 3}}]),
        422,
        "outputs.0.parameters.classification",
        "there is: binary_data",
    ),
    "a switch that is none": (
        v2(TEXTS[0], outputs=[{"name": "label", "parameters": {"binary_data": "yes"}}]),
        422,
        "outputs.0.parameters.binary_data",
        "must be true or false",
    ),
    "params in two places": (
        v2(TEXTS[0], parameters={"params": "{}", "topk": 3}),
        422,
        "parameters.params",
        "beside it topk",
    ),
    "params that are no JSON": (v2(TEXTS[0], parameters={"params": "topk=3"}), 422, "inputs.0.data.0.params", "JSON"),
    "Triton's priority": (v2(TEXTS[0], parameters={"priority": 1}), 422, "inputs.0.data.0.priority", "unknown key"),
    "a parameter there is not": (
        v2(TEXTS[0], parameters={"binary_data": 1}),
        422,
        "inputs.0.data.0.binary_data",
        "unknown key",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_refused_with_the_place_and_the_form(name: str) -> None:
    body, status, field, message = BAD[name]
    error = refusal(body)
    assert (error.status, error.field) == (status, field)
    assert message in error.message


@pytest.mark.parametrize("data", [TEXTS, [[text] for text in TEXTS]], ids=["flat", "nested"])
@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_the_tensor_has_an_element_for_each_image_flat_or_nested(data: Any, shape: list[int]) -> None:
    call = read({"inputs": [{"name": "x", "datatype": "BYTES", "shape": shape, "data": data}]})
    for n, request in enumerate(call.requests):
        np.testing.assert_array_equal(np.asarray(request.image), np.asarray(picture(n)))


def test_all_params_may_come_as_json_text_in_one_parameter() -> None:
    params = {"topk": 2, "methods": ["saliency", {"method": "occlusion", "options": {"window": 8}}]}
    (text,) = read(v2(TEXTS[0], parameters={"params": json.dumps(params)})).requests
    (plain,) = read(v2(TEXTS[0], parameters=params)).requests
    assert text.params == plain.params


def test_a_body_without_a_content_type_is_read_as_what_it_is() -> None:
    text = json.dumps(v2(TEXTS[0], model_name="convlens")).encode()
    (request,) = parse_request({"body": text}, {}).requests
    np.testing.assert_array_equal(np.asarray(request.image), np.asarray(picture(0)))


def test_a_packed_body_is_refused() -> None:
    error = refusal(v2(TEXTS[0]), headers={"Content-Encoding": "gzip"})
    assert (error.status, "gzip" in error.message) == (415, True)


def test_a_kserve_body_is_answered_in_json_only() -> None:
    error = refusal({"instances": TEXTS}, headers=HEADERS | {"accept": "image/png"})
    assert error.status == 406


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": [1] * 33}, "outputs has 33 items; at most 32"),
        ({"parameters": {f"k{n}": 1 for n in range(65)}}, "parameters has 65 keys; at most 64"),
    ],
)
def test_lists_and_objects_of_a_v2_body_that_are_much_too_long_are_refused_by_their_number(
    change: dict[str, Any], message: str
) -> None:
    tensor = {"name": "data", "datatype": "BYTES", "shape": [1], "data": TEXTS[:1]}
    error = refusal({"inputs": [tensor], **change})
    assert (error.status, message in error.message) == (422, True)


def test_a_shape_of_a_million_numbers_is_not_repeated_in_the_error() -> None:
    tensor = {"name": "data", "datatype": "BYTES", "shape": [1] * 1_000_000, "data": TEXTS[:1]}
    error = refusal({"inputs": [tensor]})
    assert error.message == "inputs.0.shape has 1000000 items; at most 32 are allowed"
    assert error.field == "inputs.0.shape"
