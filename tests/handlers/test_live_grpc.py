"""Through a live TorchServe: over gRPC the same answers, errors and batches as over REST, and the worker lives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from bad_bodies import corpus
from bad_images import WHOLE
from bad_requests import CONTROL, BadRequest
from live_grpc import Calls, calls
from live_server import BATCHED, QUICK, Live, photograph, strict
from reply_comparison import assert_same_reply

from convlens.client.protocol.inference_pb2 import PredictionsRequest

COARSE = {"method": "occlusion", "options": {"window": 112, "stride": 112}}
NAMES = ("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
ASKED: list[dict[str, Any]] = [
    {},
    {"methods": ["saliency"], "target": 282},
    {"methods": [COARSE, "guided_backprop"]},
    {"neighbours": 3, "methods": ["deconvnet"], "topk": 2},
]


@pytest.fixture(scope="module")
def over(live: Live) -> Iterator[Calls]:
    with calls(live.server) as made:
        yield made


@pytest.fixture(autouse=True)
def _the_workers_live(live: Live) -> Iterator[None]:
    before = live.pids()
    yield
    assert live.pids() == before


def parts(picture: bytes, params: Any = None) -> dict[str, bytes]:
    return {"data": picture} | ({} if params is None else {"params": json.dumps(params).encode()})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("params", ASKED, ids=str)
def test_a_call_is_answered_as_the_same_question_by_rest(live: Live, over: Calls, name: str, params: Any) -> None:
    found = strict(over.unary(QUICK, parts(photograph(name), params)))
    assert_same_reply(found, live.explain(params, photograph(name)))


def test_explanations_are_asked_for_by_the_parameters(live: Live, over: Calls) -> None:
    found = strict(over.unary(QUICK, parts(photograph(), {"explain": True})))
    assert_same_reply(found, live.answer(f"explanations/{QUICK}", content=photograph()))
    assert [one["id"] for one in found["explanations"]] == ["saliency", "guided_backprop", "occlusion", "neighbours"]


def test_rest_and_grpc_streams_and_errors_share_a_batch_and_each_gets_its_own(live: Live, over: Calls) -> None:
    """Pitfall 1 with gRPC in it: neither the first item nor its protocol decides for the others."""
    pictures = [photograph(name) for name in NAMES]
    sent = [
        *(
            lambda p=p, a=a: strict(over.unary(BATCHED, parts(p, a)))
            for p, a in zip(pictures[:2], ASKED[:2], strict=True)
        ),
        lambda: strict(over.stream(BATCHED, parts(pictures[2], ASKED[2]))[0]),
        lambda: live.explain(ASKED[3], pictures[3], model=BATCHED),
        lambda: live.explain(ASKED[1], pictures[0], model=BATCHED),
        lambda: strict(over.unary(BATCHED, parts(b"none"))),
        lambda: strict(over.stream(BATCHED, parts(pictures[0], {"topk": 0}))[0]),
        lambda: live.answer(f"predictions/{BATCHED}", status=400, content=b"none"),
    ]
    with ThreadPoolExecutor(len(sent)) as pool:
        *found, no_picture, no_topk, rest = pool.map(lambda ask: ask(), sent)
    wanted = [live.explain(a, p) for p, a in [*zip(pictures, ASKED, strict=True), (pictures[0], ASKED[1])]]
    for one, other in zip(found, wanted, strict=True):
        assert_same_reply(one, other)
    assert (no_picture["code"], no_topk["code"], rest["code"]) == (400, 422, 400)
    clocks = [json.dumps(one["timing_ms"]) for one in found]
    assert max(map(clocks.count, clocks)) > 1, "no two requests shared a batch"


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [{}, {"methods": ["saliency"]}, {"topk": 0}], ids=["answer", "maps", "error"])
def test_a_stream_holds_one_answer_and_ends(live: Live, over: Calls, params: Any) -> None:
    (only,) = over.stream(QUICK, parts(photograph(), params))
    unary = strict(over.unary(QUICK, parts(photograph(), params)))
    assert strict(only) == unary if "code" in unary else strict(only)["predictions"] == unary["predictions"]


def test_a_stream_given_up_half_way_leaves_the_worker_alone(live: Live, over: Calls) -> None:
    asked = PredictionsRequest(model_name=BATCHED, input=parts(photograph()))
    token = tuple((name.lower(), value) for name, value in live.server.headers("inference").items())
    over.stub.StreamPredictions(asked, metadata=token).cancel()
    with pytest.raises(grpc.RpcError) as caught:
        over.unary(BATCHED, parts(photograph()), timeout_s=0.05)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "predictions" in strict(over.unary(BATCHED, parts(photograph())))


# --- size -------------------------------------------------------------------------------------------------------------


def test_replies_and_requests_above_four_megabytes_pass(live: Live, over: Calls) -> None:
    """gRPC's own limit is 4 MB a message; ours is set in config.properties, and by the client for what it receives."""
    nine = [{"method": "saliency", "id": str(k), "target": k} for k in range(9)]
    body = over.unary(QUICK, parts(photograph() + bytes(6_000_000), {"methods": nine, "output": ["array"]}))
    assert len(body) > 7_000_000
    assert [one["target"] for one in strict(body)["explanations"]] == list(range(9))


def test_a_message_above_the_servers_limit_is_broken_off(live: Live, over: Calls) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        over.unary(QUICK, parts(bytes(34 * 2**20)))
    assert caught.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)


# --- bad ones ---------------------------------------------------------------------------------------------------------


def as_parts(bad: BadRequest) -> dict[str, bytes] | None:
    """What of the corpus can be said over gRPC: pictures alone, or with params."""
    if set(bad.request) == {"content"}:
        return {"data": bad.request["content"]}
    if bad.route == "predictions/{}" and set(bad.request) == {"files"} and isinstance(bad.request["files"], dict):
        return {
            name: part[1] if isinstance(part[1], bytes) else part[1].encode()
            for name, part in bad.request["files"].items()
        }
    return None


SAYABLE = {
    what: (bad, said) for what, bad in corpus().items() if bad.route == "predictions/{}" and (said := as_parts(bad))
}


@pytest.mark.parametrize("what", SAYABLE)
def test_what_rest_refuses_grpc_refuses_in_the_same_words(over: Calls, what: str) -> None:
    bad, said = SAYABLE[what]
    error = strict(over.unary(QUICK, said))
    assert error["code"] == bad.status
    assert any(words in error["message"] for words in bad.message.split("|")), error["message"]
    assert bad.field in (None, error["field"])


ODD: dict[str, tuple[dict[str, bytes], int]] = {
    "nothing": ({}, 422),
    "params alone": ({"params": b"{}"}, 422),
    "a whole body": ({"body": WHOLE["PNG"]}, 200),
    "a whole body of JSON": ({"body": b'{"data": "aaaa"}'}, 400),
    "TorchServe's own headers as parts": ({"data": WHOLE["PNG"], "explain": b"True", "url_path": b"saliency"}, 422),
    "Host as a part": ({"data": WHOLE["PNG"], "Host": b"x"}, 422),
    "a part of no name": ({"data": WHOLE["PNG"], "": b""}, 422),
    "a part of control characters": ({"data": WHOLE["PNG"], CONTROL: b""}, 422),
    "content type as a part": ({"data": WHOLE["PNG"], "content-type": b"application/x-www-form-urlencoded"}, 422),
}


@pytest.mark.parametrize("way", ["unary", "stream"])
@pytest.mark.parametrize("what", ODD)
def test_odd_parts_are_refused_by_name(over: Calls, way: str, what: str) -> None:
    said, code = ODD[what]
    body = strict(over.unary(QUICK, said) if way == "unary" else over.stream(QUICK, said)[0])
    assert body.get("code", 200) == code
    assert ("message" in body) == (code != 200)


def test_without_a_token_or_of_another_model_there_is_no_answer(live: Live, over: Calls) -> None:
    asked = PredictionsRequest(model_name=QUICK, input=parts(photograph()))
    with pytest.raises(grpc.RpcError) as caught:
        over.stub.Predictions(asked, timeout=20)
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.RpcError) as caught:
        over.unary("nosuch", parts(photograph()))
    assert "Model not found" in caught.value.details()
