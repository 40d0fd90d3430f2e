"""Sixteen clients at once over REST and gRPC, with requests of every kind, and whether each got its own answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from image_files import saved
from live_grpc import Calls
from live_server import photograph, strict
from reply_comparison import assert_same_reply

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
