"""Ray Serve and TorchServe serve one archive: every request gets the same answer from both, byte for byte."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from bad_bodies import corpus
from image_files import saved
from live_grpc import Calls, calls
from live_server import photograph, strict
from ray_service import Started
from safetensors.numpy import load
from small_server import SMALL

from convlens import image
from convlens.torchserve.server import Server

PICTURE = saved(image.decode(photograph()).resize((96, 80)), "PNG")
BASE64 = base64.b64encode(PICTURE).decode()
JSON = {"content-type": "application/json"}
# What differs from one answer to the next of the same server, too.
_CLOCKS = {"timing_ms", "seconds"}

Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def ask_both(small: Server, ray_small: Started) -> Iterator[Callable[..., tuple[httpx.Response, httpx.Response]]]:
    """The same request to TorchServe and to Ray Serve."""
    with httpx.Client(timeout=60, trust_env=False) as client:

        def ask(path: str, *, method: str = "POST", **sent: Any) -> tuple[httpx.Response, httpx.Response]:
            headers = sent.pop("headers", {})
            torchserve, ray = (
                client.request(
                    method, f"{at.inference_url}/{path}", headers={**at.headers("inference"), **headers}, **sent
                )
                for at in (small, ray_small.server)
            )
            return torchserve, ray

        yield ask


def timeless(body: Any) -> Any:
    """A JSON answer without its clocks; the replies in a KServe tensor are JSON texts."""
    if isinstance(body, Mapping) and re.search("would take about|ms have passed", str(body.get("message"))):
        body = {**body, "message": re.sub(r"[\d.]+ m?s|=\d+", "#", body["message"])}  # each server's own clock and pace
    if isinstance(body, Mapping):
        return {key: timeless(value) for key, value in body.items() if key not in _CLOCKS}
    if isinstance(body, list):
        return [timeless(each) for each in body]
    return timeless(strict(body)) if isinstance(body, str) and body.startswith("{") else body


def assert_same(torchserve: httpx.Response, ray: httpx.Response) -> None:
    assert ray.status_code == torchserve.status_code, ray.text[:500]
    assert ray.headers["content-type"] == torchserve.headers["content-type"]
    assert timeless(strict(ray.content)) == timeless(strict(torchserve.content))


def as_json(**body: Any) -> dict[str, Any]:
    return {"content": json.dumps(body).encode(), "headers": JSON}


def form(params: Any) -> dict[str, Any]:
    return {"files": {"data": ("a", PICTURE), "params": (None, json.dumps(params))}}


V2 = {"inputs": [{"name": "data", "datatype": "BYTES", "shape": [2], "data": [BASE64] * 2}]}
COARSE = {"method": "occlusion", "options": {"window": 8, "stride": 8}}  # 64 windows: a sweep
PREDICTIONS, EXPLANATIONS = f"predictions/{SMALL}", f"explanations/{SMALL}"
GOOD: dict[str, dict[str, Any]] = {
    "curl -T": {"path": PREDICTIONS, "method": "PUT", "content": PICTURE},
    "POST": {"path": PREDICTIONS, "content": PICTURE},
    "POST as image/png": {"path": PREDICTIONS, "content": PICTURE, "headers": {"content-type": "image/png"}},
    "a version": {"path": f"{PREDICTIONS}/1.0", "content": PICTURE},
    "curl -F data=@": {"path": PREDICTIONS, "files": {"data": ("chelsea.png", PICTURE, "image/png")}},
    "form without a file name": {"path": PREDICTIONS, "files": {"data": (None, PICTURE)}},
    "form with params": {"path": PREDICTIONS, **form({"topk": 2})},
    "params as typed JSON": {
        "path": PREDICTIONS,
        "files": {"data": ("a", PICTURE), "params": ("p", b'{"topk": 2}', "application/json")},
    },
    "JSON b64": {"path": PREDICTIONS, **as_json(data={"b64": BASE64})},
    "JSON in capitals": {"path": PREDICTIONS, **as_json(data=BASE64), "headers": {"content-type": "Application/JSON"}},
    "JSON with a byte order mark": {"path": PREDICTIONS, "content": b"\xef\xbb\xbf" + as_json(data=BASE64)["content"],
                                    "headers": JSON},
    "JSON with params as text": {"path": PREDICTIONS, **as_json(data=BASE64, params='{"topk": 3}')},
    "the default explanations": {"path": EXPLANATIONS, "content": PICTURE},
    "a method in the path": {"path": f"{EXPLANATIONS}/1.0/grad_cam", "content": PICTURE},
    "a method in the path of predictions": {"path": f"{PREDICTIONS}/1.0/saliency", "content": PICTURE},
    "a sweep": {"path": PREDICTIONS, **form({"methods": [COARSE, "saliency"], "request_id": "r-1"})},
    "curves": {"path": PREDICTIONS, **form({"methods": ["saliency"], "evaluate": ["deletion"]})},
    "neighbours alone": {"path": PREDICTIONS, **form({"neighbours": 3})},
    "neighbours and a map": {"path": PREDICTIONS, **form({"neighbours": 2, "methods": ["guided_backprop"]})},
    "samples of a seed": {"path": PREDICTIONS,
                          **form({"methods": [{"method": "smoothgrad", "options": {"samples": 12}}], "seed": 7})},
    "halves, reduced": {"path": PREDICTIONS, **form({"methods": ["saliency"], "dtype": "<f2", "reduce": "sum"})},
    "original size": {"path": PREDICTIONS, **form({"methods": ["saliency"], "size": "original"})},
    "KServe v1": {"path": f"v1/models/{SMALL}:predict", **as_json(instances=[BASE64, {"b64": BASE64}])},
    "KServe v1 explain": {"path": f"v1/models/{SMALL}:explain", **as_json(instances=[{"data": BASE64}])},
    "KServe v2": {"path": f"v2/models/{SMALL}/infer", **as_json(**V2, id="one", parameters={"topk": 3})},
    "KServe v2 explain": {"path": f"v2/models/{SMALL}/explain", **as_json(**V2)},
}  # fmt: skip


@pytest.mark.parametrize("what", GOOD)
def test_a_good_request_gets_the_same_answer_from_both_servers(ask_both: Any, what: str) -> None:
    torchserve, ray = ask_both(**GOOD[what])
    assert ray.status_code == 200, ray.text[:500]
    assert_same(torchserve, ray)


CORPUS = corpus()


@pytest.mark.parametrize("what", CORPUS)
def test_a_bad_request_gets_the_same_refusal_from_both_servers(ask_both: Any, what: str) -> None:
    assert_same(*ask_both(**CORPUS[what].to(SMALL)))


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_nothing_is_refused_alike_whatever_the_verb(ask_both: Any, method: str) -> None:
    assert_same(*ask_both(PREDICTIONS, method=method))


FRONT: dict[str, dict[str, Any]] = {
    "an unknown model": {"path": "predictions/nosuch"},
    "an unknown version": {"path": f"{PREDICTIONS}/9.9"},
    "no route": {"path": "prediction/x"},
    "a wrong token": {"path": PREDICTIONS, "headers": {"Authorization": "Bearer wrong"}},
    "no scheme": {"path": PREDICTIONS, "headers": {"Authorization": "wrong"}},
    "a method that is a path": {"path": f"{EXPLANATIONS}/1.0/saliency/x"},
}


@pytest.mark.parametrize("what", FRONT)
def test_what_the_front_refuses_has_the_same_code_and_words_on_both_servers(ask_both: Any, what: str) -> None:
    torchserve, ray = ask_both(content=PICTURE, **FRONT[what])
    assert ray.status_code == torchserve.status_code >= 400
    assert strict(ray.content) == strict(torchserve.content)


@pytest.mark.parametrize("media", ["image/png", "application/vnd.safetensors", "application/x-npz"])
def test_every_form_of_a_reply_holds_the_same_numbers_on_both_servers(ask_both: Any, media: str) -> None:
    torchserve, ray = ask_both(f"{EXPLANATIONS}/1.0/saliency", content=PICTURE, headers={"Accept": media})
    assert (ray.status_code, ray.headers["content-type"]) == (200, media)
    if media == "image/png":
        assert ray.content == torchserve.content
        return
    read = load if media.endswith("safetensors") else lambda body: np.load(io.BytesIO(body))
    assert np.array_equal(read(ray.content)["saliency"], read(torchserve.content)["saliency"])


# --- gRPC -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def over_both(small: Server, ray_small: Started) -> Iterator[tuple[Calls, Calls]]:
    with calls(small) as torchserve, calls(ray_small.server) as ray:  # type: ignore[arg-type]
        yield torchserve, ray


ASKED: list[dict[str, Any]] = [{}, {"explain": True}, {"methods": [COARSE]}, {"neighbours": 2}, {"topk": 0}]


@pytest.mark.parametrize("way", ["unary", "stream"])
@pytest.mark.parametrize("params", ASKED, ids=str)
def test_a_call_over_grpc_gets_the_same_answer_from_both_servers(
    over_both: tuple[Calls, Calls], params: dict[str, Any], way: str
) -> None:
    parts = {"data": PICTURE, "params": json.dumps(params).encode()}

    def answered(over: Calls) -> Any:
        return timeless(strict(over.unary(SMALL, parts) if way == "unary" else over.stream(SMALL, parts)[0]))

    torchserve, ray = map(answered, over_both)
    assert ray == torchserve
