"""Every form in which TorchServe hands over a request, as measured on a live server, and what becomes of it."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import numpy as np
import pytest
from engines import picture
from image_files import saved

from convlens.engine.method_calls import method_calls
from convlens.errors import (
    ConvLensError,
    DeadlineError,
    ImageError,
    ImageTooLargeError,
    MediaTypeError,
    OverloadError,
    RequestError,
)
from convlens.image import Limits
from convlens.protocol.requests import Request, parse_request

PNG = saved(picture(1), "PNG")
BASE64 = base64.b64encode(PNG).decode()
JSON = {"content-type": "application/json"}


def read(parts: dict[str, Any], headers: dict[str, str] | None = None, **options: Any) -> Request:
    return parse_request(parts, headers or {}, **options).requests[0]


def refusal(parts: dict[str, Any], headers: dict[str, str] | None = None, **options: Any) -> ConvLensError:
    with pytest.raises(ConvLensError) as caught:
        read(parts, headers, **options)
    return caught.value


def assert_is_the_picture(result: Request) -> None:
    np.testing.assert_array_equal(np.asarray(result.image), np.asarray(picture(1)))


# --- the ways in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "headers"),
    [
        ({"body": bytearray(PNG)}, {}),
        ({"body": bytearray(PNG)}, {"Content-Type": "image/png"}),
        ({"body": bytearray(PNG)}, {"content-type": "application/octet-stream"}),
        ({"body": PNG}, {"content-type": "application/x-whatever"}),
        ({"data": bytearray(PNG)}, {"content-type": "multipart/form-data; boundary=x"}),
        ({"data": PNG}, {}),
        ({"body": {"data": {"b64": BASE64}}}, JSON),
        ({"body": {"data": BASE64}}, JSON),
        ({"data": {"b64": BASE64}}, {"content-type": "multipart/form-data; boundary=x"}),
        ({"data": BASE64}, {}),
    ],
)
def test_the_picture_comes_as_a_body_a_part_or_base64(parts: dict[str, Any], headers: dict[str, str]) -> None:
    result = read(parts, headers)
    assert_is_the_picture(result)
    assert not result.params.explain


@pytest.mark.parametrize(
    "params",
    [
        {"topk": 3},
        '{"topk": 3}',
        b'{"topk": 3}',
        bytearray(b'{"topk": 3}'),
        '\n {"topk": 3} ',
        '{"topk": 3}'.encode("utf-16"),
    ],
)
def test_params_come_as_an_object_or_as_its_json(params: Any) -> None:
    assert read({"data": PNG, "params": params}).params.topk == 3
    assert read({"body": {"data": BASE64, "params": params}}, JSON).params.topk == 3


def test_params_that_are_not_sent_or_null_are_the_default_ones() -> None:
    assert read({"data": PNG}).params == read({"data": PNG, "params": None}).params == read({"body": PNG}).params


# --- pictures that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Content-Type", "content-type", "CONTENT-TYPE"])
@pytest.mark.parametrize("parameters", ["", "; charset=utf-8"])
@pytest.mark.parametrize("parts", [{"body": bytearray(PNG)}, {"\ufffdPNG\r\n": b"\0", "IHDR": b""}, {}])
def test_what_curl_does_to_pictures_by_data_binary_is_answered_with_what_to_do(
    name: str, parameters: str, parts: dict[str, Any]
) -> None:
    error = refusal(parts, {name: f"application/x-www-form-urlencoded{parameters}"})
    assert isinstance(error, MediaTypeError)
    assert error.status == 415
    assert "-T cat.jpg" in error.message
    assert "-F data=@cat.jpg" in error.message


@pytest.mark.parametrize(
    ("body", "headers"),
    [("hello", {"content-type": "text/plain"}), (b"\xff\xfe", {"content-type": "text/html"}), ("hello", {})],
)
def test_text_is_the_wrong_media_type(body: Any, headers: dict[str, str]) -> None:
    error = refusal({"body": body}, headers)
    assert error.status == 415
    assert "text" in error.message


@pytest.mark.parametrize("body", [bytearray(b"{no json"), bytearray(b""), "a string", 5, None, True])
@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_a_body_that_only_claims_to_be_a_json_object(body: Any, content_type: str) -> None:
    error = refusal({"body": body}, {"content-type": content_type})
    assert error.status == 400
    assert "no JSON object" in error.message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_that_the_server_left_unparsed_is_parsed_here(encoding: str) -> None:
    text = json.dumps({"data": {"b64": BASE64}, "params": {"topk": 3}}).encode(encoding)
    result = read({"body": bytearray(text)}, {"content-type": "Application/JSON; charset=utf-8"})
    assert_is_the_picture(result)
    assert result.params.topk == 3


def test_a_json_list_is_answered_with_the_form_it_should_have() -> None:
    error = refusal({"body": [{"data": BASE64}]}, JSON)
    assert error.status == 422
    assert '{"data": {"b64": "…"}, "params": {…}}, not a list' in error.message


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"not a picture", 400),
        (PNG[:60], 400),
        ("", 400),
        ("no base64!", 400),
        ("é", 400),
        (BASE64[:-1], 400),
        (f"!{BASE64}", 400),
        (base64.b64encode(b"not a picture").decode(), 400),
        ({"b64": "%%"}, 400),
        ({"b64": 5}, 422),
        ({"b64": BASE64, "url": "http://x"}, 422),
        ({"url": "http://127.0.0.1/cat.jpg"}, 422),
        ({}, 422),
        (5, 422),
        (None, 422),
        ([1, 2, 3], 422),
        (True, 422),
    ],
)
def test_data_that_is_no_picture(data: Any, status: int) -> None:
    for error in (refusal({"data": data}), refusal({"body": {"data": data}}, JSON)):
        assert error.status == status
        assert error.message
        assert isinstance(error, ImageError if status == 400 else RequestError)


def test_limits_hold_for_pictures_in_base64_too() -> None:
    for parts in ({"body": PNG}, {"data": {"b64": BASE64}}):
        error = refusal(parts, limits=Limits(bytes=100))
        assert isinstance(error, ImageTooLargeError)
        assert error.status == 413


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "field", "message"),
    [
        ({}, "data", "no image in the request"),
        ({"params": b"{}"}, "data", "no image in the request"),
        ({"body": {}}, "data", "no image in the request"),
        ({"body": {"params": {}}}, "data", "no image in the request"),
        (
            {"data": PNG, "parms": b"{}"},
            "parms",
            "unknown part 'parms'; did you mean params? known parts: data, params",
        ),
        ({"data": PNG, "Data": PNG}, "Data", "unknown part 'Data'; did you mean data?"),
        ({"file": PNG}, "file", "unknown part 'file'"),
        ({"body": {"instance": [{"b64": BASE64}]}}, "instance", "unknown part 'instance'"),
        ({"body": {"data": BASE64, "topk": 3}}, "topk", "unknown part 'topk'"),
        ({"body": PNG, "data": PNG}, "body", "unknown part 'body'"),
    ],
)
def test_missing_and_unknown_parts_are_named(parts: dict[str, Any], field: str, message: str) -> None:
    error = refusal(parts, JSON)
    assert error.status == 422
    assert message in error.message
    assert error.field == field


def test_a_part_with_a_name_of_megabytes_is_not_quoted_in_full() -> None:
    error = refusal({"data": PNG, "k" * 5_000_000: b""})
    assert len(error.message) < 400
    assert len(error.field or "") < 400


# --- params -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        "",
        b"",
        "{",
        "{'topk': 3}",
        b"\xff\xfe\x00",
        b"\x80abc",
        '{"topk": NaN}',
        '{"topk": Infinity}',
        '{"topk": ' + "9" * 5000 + "}",
        "[" * 10_000,
        '{"methods":' * 10_000,
        '{"a":' * 10_000 + "1" + "}" * 10_000,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_params_that_are_no_json_are_refused(params: Any) -> None:
    error = refusal({"data": PNG, "params": params})
    assert error.status == 422
    assert "params is not valid JSON" in error.message
    assert error.field == "params"
    assert len(error.message) < 400


@pytest.mark.parametrize("params", ["[]", b"3", '"saliency"', "null", "true", ["saliency"], 3, True])
def test_params_that_are_no_object_are_refused(params: Any) -> None:
    error = refusal({"data": PNG, "params": params})
    assert error.status == 422
    assert "params must be a JSON object" in error.message


@pytest.mark.parametrize("depth", range(850, 1000, 5))
def test_json_nested_about_as_deeply_as_the_parser_can_is_refused_like_any_other(depth: int) -> None:
    window = "[" * depth + "]" * depth
    params = '{"methods":[{"method":"occlusion","options":{"window":' + window + "}}]}"
    with pytest.raises(RequestError):
        method_calls(read({"data": PNG, "params": params}).params, [])


# --- what the URL says ------------------------------------------------------------------------------------------------


def test_the_explanations_route_asks_for_explanations() -> None:
    assert read({"body": PNG}, explain=True).params.explain


def test_params_can_still_say_no_on_the_explanations_route() -> None:
    assert not read({"data": PNG, "params": '{"explain": false}'}, explain=True).params.explain


def test_a_method_in_the_path_is_the_one_asked_for_with_the_other_params_kept() -> None:
    result = read({"data": PNG, "params": '{"topk": 2}'}, explain=True, path_method="occlusion").params
    assert [one.method for one in result.methods or []] == ["occlusion"]
    assert result.topk == 2


def test_methods_in_the_path_and_in_params_contradict() -> None:
    error = refusal({"data": PNG, "params": '{"methods": ["saliency"]}'}, path_method="occlusion")
    assert error.status == 422
    assert "name them in one place" in error.message
    assert error.field == "methods"


def test_a_path_too_long_for_a_method_is_refused() -> None:
    error = refusal({"body": PNG}, path_method="x" * 4000)
    assert error.status == 422
    assert len(error.message) < 400


# --- time and size ----------------------------------------------------------------------------------------------------


def test_the_images_of_one_body_share_the_limit_on_pixels() -> None:
    width, height = picture(1).size
    body = {"body": {"instances": [BASE64, BASE64, BASE64]}}
    call = parse_request(body, JSON, limits=Limits(pixels=3 * width * height))
    assert len(call.requests) == 3
    error = refusal(body, JSON, limits=Limits(pixels=3 * width * height - 1))
    assert (type(error), error.field) == (ImageTooLargeError, "instances.2")
    error = refusal(body, JSON, limits=Limits(pixels=2 * width * height))
    assert f"the images before this one have {2 * width * height} pixels" in error.message


def test_an_image_is_not_read_after_its_deadline() -> None:
    params = {"deadline_ms": 1000, "sent_at": time.time() - 5}
    error = refusal({"data": b"no image, but nobody looks", "params": params})
    assert type(error) is ImageError  # its first bytes tell at once
    error = refusal({"data": PNG, "params": params})
    assert (type(error), error.status, error.field) == (DeadlineError, 504, "deadline_ms")


def test_a_deadline_counts_from_the_moment_that_reading_begins() -> None:
    before = time.perf_counter()
    result = read({"data": PNG, "params": {"deadline_ms": 60_000}})
    assert result.arrived is not None
    assert before <= result.arrived <= time.perf_counter()


def test_whoever_reads_may_stop_the_reading() -> None:
    def on_block() -> None:
        raise OverloadError("others wait")

    assert "others wait" in refusal({"data": PNG}, on_block=on_block).message


@pytest.mark.parametrize(
    ("params", "place"),
    [
        ({f"k{n}": 1 for n in range(65)}, "an object of the request"),
        ({"methods": [{"method": "occlusion", "options": {f"k{n}": 1 for n in range(65)}}]}, "methods.0.options"),
        ({"target": {f"k{n}": 1 for n in range(65)}}, "target"),
    ],
)
def test_an_object_of_many_keys_is_refused_by_their_number(params: dict[str, Any], place: str) -> None:
    assert f"{place} has 65 keys; at most 64 are allowed" in refusal({"data": PNG, "params": params}).message


def test_a_form_of_many_fields_is_refused_by_their_number() -> None:
    error = refusal({f"field-{n}": b"" for n in range(100_000)})
    assert (error.status, "100000 keys; at most 64" in error.message) == (422, True)
