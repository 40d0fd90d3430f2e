"""Replies as files: safetensors and npz hold the same numbers as JSON, and one overlay comes as the PNG itself."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engines import engine, picture, replied
from image_files import saved
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load

from convlens.errors import ConvLensError
from convlens.protocol.encoding import ApiResponse, encode_response
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request, parse_request
from convlens.serving.handler import require_sendable

FILE = saved(picture(4), "PNG")
METHODS = ["saliency", {"method": "occlusion", "id": "coarse", "options": {"window": 8, "stride": 8}}]
SAFETENSORS, NPZ, PNG = "application/vnd.safetensors", "application/x-npz", "image/png"


def answer(accept: str, **params: Any) -> ApiResponse:
    call = parse_request({"data": FILE, "params": params}, {"Accept": accept})
    return encode_response(call, [replied(one) for one in engine().run(call.requests)])


def by_safetensors(body: bytes, tmp: Any) -> tuple[dict[str, np.ndarray], Any]:
    (tmp / "reply.safetensors").write_bytes(body)
    with safe_open(tmp / "reply.safetensors", "np") as file:  # the library's own reader
        return load(body), json.loads(file.metadata()["reply"])


def by_numpy(body: bytes, _: Any) -> tuple[dict[str, np.ndarray], Any]:
    with np.load(io.BytesIO(body), allow_pickle=False) as file:
        return {name: file[name] for name in file if name != "reply.json"}, json.loads(file["reply.json"])


READERS: dict[str, Callable[..., Any]] = {SAFETENSORS: by_safetensors, NPZ: by_numpy}


@pytest.mark.parametrize("accept", READERS)
@pytest.mark.parametrize("wanted", [{}, {"dtype": "<f2"}, {"reduce": "abs_max"}, {"size": "original"}])
def test_a_file_holds_the_same_maps_as_json(accept: str, wanted: dict[str, Any], tmp_path: Any) -> None:
    out = answer(accept, methods=METHODS, output=["array"], **wanted)
    assert out.media == accept
    arrays, reply = READERS[accept](out.body, tmp_path)
    plain = json.loads(answer("application/json", methods=METHODS, output=["array"], **wanted).body)
    seen = set()
    for found, said in zip(reply["explanations"], plain["explanations"], strict=True):
        bodies = {found["id"]: (found["array"], said["array"])}
        bodies |= {f"{found['id']}/{key}": (body, said["extras"][key]) for key, body in found["extras"].items()}
        for name, (attached, inline) in bodies.items():
            assert (attached.pop("encoding"), attached.pop("data")) == ("attached", name)
            values = np.frombuffer(base64.b64decode(inline.pop("data")), inline["dtype"]).reshape(inline["shape"])
            assert inline.pop("encoding") == "base64"
            assert attached == inline
            assert arrays[name].dtype == np.dtype(inline["dtype"])
            np.testing.assert_array_equal(arrays[name], values)
            seen.add(name)
    assert seen == set(arrays) == {"saliency", "coarse", "coarse/grid_NRQ"}
    assert reply["predictions"] == plain["predictions"]


@pytest.mark.parametrize("accept", READERS)
def test_a_file_holds_the_same_curves_as_json(accept: str, tmp_path: Any) -> None:
    asked = {"methods": ["saliency"], "output": ["array"], "evaluate": {"steps": 4}}
    arrays, reply = READERS[accept](answer(accept, **asked).body, tmp_path)
    plain = json.loads(answer("application/json", **asked).body)
    assert reply["explanations"][0]["evaluation"] == plain["explanations"][0]["evaluation"]
    assert set(arrays) == {"saliency"}


@pytest.mark.parametrize("accept", READERS)
def test_a_file_of_predictions_alone_has_no_arrays(accept: str, tmp_path: Any) -> None:
    arrays, reply = READERS[accept](answer(accept).body, tmp_path)
    assert not arrays
    assert len(reply["predictions"]) == 5


@pytest.mark.parametrize("accept", READERS)
def test_the_same_arrays_make_the_same_bytes(accept: str) -> None:
    sizes = {len(answer(accept, methods=["saliency"], output=["array"]).body) for _ in range(2)}
    assert max(sizes) - min(sizes) < 60  # timings differ in their digits; everything else is padded or fixed


def test_one_overlay_is_the_png_that_json_carries() -> None:
    out = answer(PNG, methods=["saliency"])
    plain = json.loads(answer("", methods=["saliency"], output=["overlay"]).body)
    assert out.media == PNG
    assert out.body == base64.b64decode(plain["explanations"][0]["overlay"]["data"])
    assert Image.open(io.BytesIO(out.body)).size == (24, 24)


def test_one_heatmap_where_that_is_asked_for() -> None:
    plain = json.loads(answer("", methods=["saliency"], output=["heatmap"]).body)
    found = answer(PNG, methods=["saliency"], output=["heatmap"])
    assert found.body == base64.b64decode(plain["explanations"][0]["heatmap"]["data"])


def test_clients_without_headers_name_the_form_in_params() -> None:
    call = parse_request(
        {"data": FILE, "params": {"methods": ["saliency"], "accept": PNG}}, {"accept": "application/json"}
    )
    out = encode_response(call, [replied(one) for one in engine().run(call.requests)])
    assert out.media == PNG


@pytest.mark.parametrize(
    ("params", "field", "said"),
    [
        ({}, "methods", "asks for none"),
        ({"methods": ["saliency", "grad_cam"]}, "methods", "asks for saliency, grad_cam"),
        ({"explain": True}, "methods", "asks for saliency, occlusion"),
        ({"methods": ["neighbours"]}, "methods", "asks for none"),
        ({"methods": ["saliency"], "output": ["array"]}, "output", "one image"),
        ({"methods": ["saliency"], "evaluate": ["deletion"]}, "evaluate", "ask for application/json"),
        ({"methods": ["saliency"], "output": ["overlay", "heatmap"]}, "output", "one image"),
    ],
)
def test_a_png_is_refused_before_any_work_where_it_cannot_hold_the_answer(
    params: dict[str, Any], field: str, said: str
) -> None:
    (request,) = parse_request({"data": FILE, "params": params}, {"accept": PNG}).requests
    with pytest.raises(ConvLensError) as caught:
        require_sendable(request, ("saliency", "occlusion"), max_bytes=10**9)
    assert (caught.value.status, caught.value.field) == (422, field)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("params", "megabytes"),
    [
        # 1000 × 1000 pixels: 3 channels of float32 in base64, and 1.5 bytes a pixel of overlay in base64
        ({"methods": ["saliency"], "output": ["array"]}, 16.0),
        ({"methods": ["saliency"], "output": ["array"], "dtype": "<f2"}, 8.0),
        ({"methods": ["saliency"], "output": ["array"], "reduce": "abs_max"}, 5.3),
        ({"methods": ["saliency"], "output": ["overlay"]}, 2.0),
        ({"methods": ["saliency", "occlusion"], "output": ["array"]}, 21.3),
        ({"methods": ["neighbours"]}, 0.0),
    ],
)
def test_maps_in_the_size_of_a_large_picture_are_weighed_beforehand(params: dict[str, Any], megabytes: float) -> None:
    params = {"size": "original", "accept": "application/json"} | params
    request = Request(picture(size=(1000, 1000)), parse_params(params))
    require_sendable(request, (), max_bytes=int(megabytes * 1e6) + 60_000)
    if megabytes:
        with pytest.raises(ConvLensError, match="size 'model' or a smaller image") as caught:
            require_sendable(request, (), max_bytes=int(megabytes * 1e6) - 60_000)
        assert (caught.value.status, caught.value.field) == (422, "size")


def test_maps_of_the_models_size_need_no_weighing() -> None:
    require_sendable(Request(picture(size=(1000, 1000)), parse_params({"methods": ["saliency"]})), (), max_bytes=1)
