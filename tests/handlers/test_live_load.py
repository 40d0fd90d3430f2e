"""Through a live TorchServe: sixteen clients at once over REST and gRPC, and a thousand requests of every kind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from image_files import saved
from live_grpc import Calls, calls
from live_server import BATCHED, QUICK, Live, photograph, strict
from reply_comparison import assert_same_reply
from small_server import SMALL, worker_of

from convlens import explain, image
from convlens.torchserve.server import Server

CLIENTS = 16
NAMES = ("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
PHOTOGRAPHS = [photograph(name) for name in NAMES]
# For the small network: reading large files is not what is loaded here.
THUMBNAILS = [
    saved(image.decode(data).resize((96, 80)), form)
    for data, form in zip(PHOTOGRAPHS, ("PNG", "JPEG", "WebP", "BMP"), strict=True)
]
Question = tuple[bytes, str]  # a picture, and the JSON of what is asked about it
Ask = Callable[[Question], Any]


def kinds(side: int) -> list[str]:
    """Predictions, every method there is at its cheapest, and several at once, for a network of so many pixels."""
    cheap = {
        "occlusion": {"window": side // 2, "stride": side // 2},
        "smoothgrad": {"samples": 2},
        "integrated_gradients": {"steps": 3},
        "score_cam": {"top": 4},
        "rise": {"masks": 4},
        "gradient_shap": {"samples": 2},
    }
    alone = [
        {"methods": [{"method": name, "options": cheap.get(name, {})}], "seed": 7}
        for name in explain.available_methods()
    ]
    several = [
        {"methods": ["saliency", "guided_backprop", "grad_cam"], "target": 5, "output": ["array", "overlay"]},
        {"methods": ["deconvnet"], "neighbours": 2, "reduce": "abs_max"},
    ]
    return [json.dumps(params) for params in [{}, {"topk": 3}, *alone, *several]]


def questions(count: int, pictures: Sequence[bytes], asked: Sequence[str]) -> list[Question]:
    """Every picture with every kind, in turn."""
    return [(pictures[n % len(pictures)], asked[n // len(pictures) % len(asked)]) for n in range(count)]


def over_rest(server: Server, client: httpx.Client, model: str) -> Ask:
    def ask(question: Question) -> Any:
        got = client.post(
            f"{server.inference_url}/predictions/{model}",
            headers=server.headers("inference"),
            files={"data": ("a", question[0]), "params": (None, question[1])},
        )
        assert got.status_code == 200, got.text[:300]
        return strict(got.content)

    return ask


def over_grpc(over: Calls, model: str) -> Ask:
    return lambda question: strict(over.unary(model, {"data": question[0], "params": question[1].encode()}))


def crowd(asks: Sequence[Ask], asked: Sequence[Question]) -> list[Any]:
    """The replies, in order, of sixteen clients that take the next question when they have their answer."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(lambda n: asks[n // CLIENTS % len(asks)](asked[n]), range(len(asked))))


def assert_each_is_what_it_is_alone(ask: Ask, asked: Sequence[Question], replies: Sequence[Any]) -> None:
    """Each different question asked once more, when nobody else asks."""
    alone = {one: ask(one) for one in dict.fromkeys(asked)}
    for one, reply in zip(asked, replies, strict=True):
        assert "code" not in reply, reply
        assert_same_reply(reply, alone[one])


def batches(replies: Sequence[Any]) -> Counter[str]:
    """How many replies came of each batch: rows of one are timed together, to the microsecond."""
    return Counter(json.dumps(reply["timing_ms"]) for reply in replies)


def test_a_thousand_requests_of_sixteen_clients_get_what_each_gets_alone(small: Server, client: httpx.Client) -> None:
    """Pitfall 9, too: after a thousand calls the worker is the same process and has taken no more memory."""
    asked = questions(1000, THUMBNAILS, kinds(64))
    assert len(set(asked)) == 4 * len(kinds(64))
    with calls(small) as over:
        asks = [over_rest(small, client, SMALL), over_grpc(over, SMALL)]
        crowd(asks, asked[:400])  # so that what is kept for good is there before memory is looked at
        process = worker_of(small, SMALL)
        before = process.memory_info().rss
        replies = crowd(asks, asked)
        after = process.memory_info().rss
        assert worker_of(small, SMALL).pid == process.pid
        assert_each_is_what_it_is_alone(asks[0], asked, replies)
    assert after <= 1.05 * before, f"{before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after"
    assert len(batches(replies)) < len(replies) / 2, "hardly any request shared a batch"


def test_the_default_model_under_load_gives_each_what_it_gets_alone(live: Live) -> None:
    pids = live.pids()
    asked = questions(96, PHOTOGRAPHS, kinds(224))
    with calls(live.server) as over:
        replies = crowd([over_rest(live.server, live.client, BATCHED), over_grpc(over, BATCHED)], asked)
    assert_each_is_what_it_is_alone(over_rest(live.server, live.client, QUICK), asked, replies)
    assert live.pids() == pids
