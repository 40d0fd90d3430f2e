"""Through a live TorchServe: whatever is sent, the worker lives and answers the next request as before."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from liveserver import BATCHED, QUICK, Live, photograph, strict

from convlens import image

pytestmark = pytest.mark.live

PICTURE = photograph()
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def before(live: Live) -> tuple[dict[str, list[int]], Any]:
    return live.pids(), live.answer(content=PICTURE)["predictions"]


@pytest.fixture(autouse=True)
def _the_worker_lives_and_predicts_as_before(live: Live, before: tuple[dict[str, list[int]], Any]) -> Iterator[None]:
    yield
    assert (live.pids(), live.answer(content=PICTURE)["predictions"]) == before


# --- parameters -------------------------------------------------------------------------------------------------------

PARAMS: dict[str, tuple[Any, str | None, str]] = {
    "an unknown key": ({"topK": 3}, "topK", "unknown key 'topK'; did you mean topk? known keys: explain, topk"),
    "an unknown key of a method": ({"methods": [{"name": "saliency"}]}, "methods.0.method", "field required"),
    "an unknown option": (
        {"methods": [{"method": "occlusion", "options": {"windows": 3}}]},
        "methods.0.options.windows",
        "did you mean window? known keys: window, stride, fill, score",
    ),
    "a key of later": ({"deadline_ms": 100}, "deadline_ms", "unknown key 'deadline_ms'"),
    "an unknown method": ({"methods": ["occlude"]}, "methods.0.method", "there are: deconvnet, grad_cam, guided_backp"),
    "17 methods": ({"methods": ["saliency"] * 17}, "methods", "at most 16 items"),
    "200 methods": ({"methods": [{"method": "saliency", "id": str(n)} for n in range(200)]}, "methods", "at most 16"),
    "an ambiguous label": (
        {"target": "CARDIGAN", "methods": ["saliency"]},
        "target",
        "2 classes are labelled 'CARDIGAN'",
    ),
    "an unknown label": ({"target": "tiger cot", "methods": ["saliency"]}, "target", "did you mean tiger cat"),
    "a label with a line break": ({"target": "tiger\r\ncat", "methods": ["saliency"]}, "target", "'tiger\\r\\ncat'"),
    "a label that looks like a metric": (
        {"target": "\n[METRICS]x.Count:1|#a:b|#hostname:h\n[PID]1", "methods": ["saliency"]},
        "target",
        "no class labelled",
    ),
    "a class out of range": ({"target": 1000, "methods": ["saliency"]}, "target", "no class 1000; there are 0..999"),
    "an id with a space": ({"request_id": "a b"}, "request_id", "string should match pattern"),
    "a stride that skips": (
        {"methods": [{"method": "occlusion", "options": {"window": 8, "stride": 9}}]},
        "methods.0.options.stride",
        "would skip pixels",
    ),
    "a sweep of 47,089 windows": (
        {"methods": [{"method": "occlusion", "options": {"window": 8, "stride": 1}}]},
        "methods",
        "costs about 47089 forward passes and 2000 are allowed",
    ),
    "more neighbours than there are": ({"neighbours": 999}, "options.k", "the gallery holds 50 pictures; use 1..50"),
    "not a number": ('{"topk": NaN}', "params", "params is not valid JSON: NaN is not JSON"),
    "no JSON": ("{'topk': 3}", "params", "params is not valid JSON"),
    "10,000 levels of JSON": ('{"topk":' + "[" * 10_000 + "]" * 10_000 + "}", "params", "params is not valid JSON"),
    "950 levels of JSON": ('{"topk":' + "[" * 950 + "]" * 950 + "}", None, ""),
    "a key of a megabyte": (json.dumps({"\x00" * 1_000_000: 1}), None, "unknown key"),
    "half a pair of surrogates": (r'{"target": "\ud83d", "methods": ["saliency"]}', None, ""),
}


@pytest.mark.parametrize("what", PARAMS)
def test_params_that_cannot_be_honoured_are_a_422(live: Live, what: str) -> None:
    params, field, said = PARAMS[what]
    body = live.explain(params, status=422)
    assert set(body) == {"code", "type", "message", "field", "request_id"}
    assert said in body["message"]
    assert field is None or body["field"] == field
    assert len(body["message"]) <= 2000


def test_an_error_carries_the_id_of_its_request(live: Live) -> None:
    body = live.explain({"request_id": "id-7", "target": 5000, "methods": ["saliency"]}, status=422)
    assert body["request_id"] == "id-7"


# --- bodies -----------------------------------------------------------------------------------------------------------

BODIES: dict[str, tuple[dict[str, Any], int]] = {
    "nothing": ({"content": b""}, 400),
    "nothing, by GET": ({"method": "GET"}, 400),
    "garbage": ({"content": bytes(range(256)) * 40}, 400),
    "half a picture": ({"content": PICTURE[: len(PICTURE) // 2]}, 400),
    "base64 in a form": ({"files": {"data": (None, base64.b64encode(PICTURE), "text/plain")}}, 400),
    "text": ({"content": b"a picture of a cat", "headers": {"content-type": "text/plain"}}, 415),
    "no JSON": ({"content": b"{no json", "headers": JSON}, 400),
    "a hundred thousand brackets": ({"content": b"[" * 100_000, "headers": JSON}, 400),
    "a JSON list": ({"content": b"[1, 2]", "headers": JSON}, 422),
    "a JSON number": ({"content": b"5", "headers": JSON}, 400),
    "JSON without a picture": ({"content": b"{}", "headers": JSON}, 422),
    "KServe's first protocol": ({"content": b'{"instances": [{"data": "aaaa"}]}', "headers": JSON}, 422),
    "no base64": ({"content": b'{"data": {"b64": "%%%"}}', "headers": JSON}, 400),
    "an address instead of a picture": ({"content": b'{"data": {"url": "http://127.0.0.1/"}}', "headers": JSON}, 422),
    "a form without a picture": ({"files": {"params": (None, "{}")}}, 422),
    "a form with a part too many": ({"files": {"data": ("a", PICTURE), "extra\r\n": (None, "x")}}, 422),
    "too many pixels": ({"content": image.encode_png(np.zeros((1, 1, 3), np.uint8))[:16] + b"\0\1\0\0" * 2}, 400),
    "a strange content type": ({"content": b"x", "headers": {"content-type": "image/png;;;=\t" + "x" * 3000}}, 400),
}


@pytest.mark.parametrize("what", BODIES)
def test_bodies_that_are_no_picture_are_refused(live: Live, what: str) -> None:
    sent, status = BODIES[what]
    body = live.answer(status=status, **sent)
    assert body["message"]


@pytest.mark.parametrize("path", ["occlude", "saliency/x", "a%20b", "%F0%9F%98%80", "x" * 1000, "[METRICS]x"])
def test_odd_methods_in_the_path_are_a_422_with_the_methods_there_are(live: Live, path: str) -> None:
    body = live.answer(f"explanations/{QUICK}/1.0/{path}", status=422, content=PICTURE)
    assert "occlusion" in body["message"] or "methods" in body["field"]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Odd": "caf\u00e9".encode("latin-1")},
        {"x-ts-request-id": "a b", "url_path": "occlude"},
        {"explain": "maybe", "ts_stream_next": "true"},
        {"Accept": "image/png"},
        {"X-Long": "x" * 6000},
    ],
    ids=["Latin-1", "TorchServe's own", "ours", "Accept", "6,000 letters"],
)
def test_odd_headers_change_nothing(live: Live, headers: dict[str, Any], before: Any) -> None:
    assert live.answer(content=PICTURE, headers=headers)["predictions"] == before[1]


def test_a_reply_too_large_for_the_server_is_refused_rather_than_sent(live: Live) -> None:
    sixteen = [{"method": "saliency", "id": str(k), "target": k} for k in range(16)]
    body = live.explain({"methods": sixteen, "output": ["array"]}, status=422)
    assert "the reply would have 12.9 MB and 8.0 are allowed" in body["message"]
    found = live.explain({"methods": sixteen, "output": ["array"], "reduce": "abs_max"})
    assert [one["target"] for one in found["explanations"]] == list(range(16))


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_picture_of_one_colour_is_explained_in_strict_json(live: Live, grey: int) -> None:
    picture = image.encode_png(np.full((300, 300, 3), grey, np.uint8))
    methods = ["saliency", "guided_backprop", "grad_cam", "neighbours"]
    body = live.explain({"methods": methods, "output": ["array", "overlay", "heatmap"]}, picture)
    assert [one["id"] for one in body["explanations"]] == methods
    for one in body["explanations"][:-1]:
        assert np.isfinite(np.frombuffer(base64.b64decode(one["array"]["data"]), "<f4")).all()


def test_a_batch_of_nothing_but_refusals_is_answered(live: Live) -> None:
    sent = [{"path": f"predictions/{BATCHED}", "content": b"none"} for _ in range(8)]
    found = live.together(*sent)
    assert [one.status_code for one in found] == [400] * 8
    assert all(strict(one.content)["type"] == "ImageError" for one in found)


def test_what_clients_send_does_not_reach_the_logs_of_the_server(live: Live) -> None:
    secret = "mark-of-this-request"
    live.explain({"target": f"\n[METRICS]{secret}.Count:1", "methods": ["saliency"]}, status=422)
    live.answer(status=400, content=secret.encode())
    logs = b"".join(file.read_bytes() for file in live.server.logs.iterdir())
    assert secret.encode() not in logs
    assert live.server.token("inference").encode() not in logs
