"""Through a live TorchServe: whatever is sent, the worker lives and answers the next request as before."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from bad_bodies import corpus
from live_server import BATCHED, QUICK, Live, photograph, strict

from convlens import image

PICTURE = photograph()


@pytest.fixture(scope="module")
def before(live: Live) -> tuple[dict[str, list[int]], Any]:
    return live.pids(), live.answer(content=PICTURE)["predictions"]


@pytest.fixture(autouse=True)
def _the_worker_lives_and_predicts_as_before(live: Live, before: tuple[dict[str, list[int]], Any]) -> Iterator[None]:
    yield
    assert (live.pids(), live.answer(content=PICTURE)["predictions"]) == before


CORPUS = corpus()


def test_the_corpus_is_not_small() -> None:
    assert len(CORPUS) >= 60


@pytest.mark.parametrize("what", CORPUS)
def test_a_bad_request_gets_its_code_and_is_told_what_to_do(live: Live, what: str) -> None:
    bad = CORPUS[what]
    error = live.answer(status=bad.status, **bad.to(QUICK))
    # KServe's clients look for the message elsewhere.
    also = {"error"} if what.startswith("kserve: ") else set()
    assert set(error) == {"code", "type", "message", "field", "request_id"} | also
    assert any(words in error["message"] for words in bad.message.split("|")), error["message"]
    assert bad.field in (None, error["field"])
    # What a request sends must not swell the reply; nor can it colour a terminal or break a line of the log.
    assert len(error["message"]) <= 2000
    assert error["message"].isprintable()


def test_an_error_carries_the_id_of_its_request(live: Live) -> None:
    body = live.explain({"request_id": "id-7", "target": 5000, "methods": ["saliency"]}, status=422)
    assert body["request_id"] == "id-7"


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_nothing_is_refused_whatever_the_verb(live: Live, method: str) -> None:
    assert "send a JPEG" in live.answer(status=400, method=method)["message"]


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
        {"Accept": "*/*, image/png;q=0.5"},
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
