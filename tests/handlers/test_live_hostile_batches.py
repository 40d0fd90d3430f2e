"""Through a live TorchServe: bad requests beside good ones in a batch, odd but legal ones, and what is hardly HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from bad_bodies import corpus
from bad_images import inflated
from image_files import saved
from live_server import BATCHED, QUICK, Live, photograph, strict
from raw_http import FRONTEND, WRONG, post, send
from reply_comparison import assert_same_reply

CORPUS = corpus()
# As they go to a batch of eight, with a good request at each end.
SIXES = [list(CORPUS)[n : n + 6] for n in range(0, len(CORPUS), 6)]
GOOD: list[dict[str, Any]] = [
    {"path": "predictions/{}", "content": photograph("coffee.png")},
    {
        "path": "predictions/{}",
        "files": {
            "data": ("rocket.jpg", photograph("rocket.jpg")),
            "params": (None, '{"methods": ["saliency"], "target": 657}'),
        },
    },
]


def to(model: str, sent: dict[str, Any]) -> dict[str, Any]:
    return {**sent, "path": sent["path"].format(model)}


@pytest.fixture(scope="module")
def alone(live: Live) -> list[Any]:
    """The good requests' replies, each from a batch of one."""
    return [live.answer(**to(QUICK, one)) for one in GOOD]


@pytest.fixture(scope="module")
def before(live: Live) -> dict[str, list[int]]:
    return live.pids()


@pytest.fixture(autouse=True)
def _the_workers_live(live: Live, before: dict[str, list[int]]) -> Iterator[None]:
    yield
    assert live.pids() == before


@pytest.fixture(scope="module")
def shared() -> list[bool]:
    """For each eight requests sent at once, whether the first and the last met in one batch."""
    return []


@pytest.mark.parametrize("six", SIXES, ids=lambda six: six[0])
def test_bad_requests_leave_the_good_ones_of_their_batch_alone(
    live: Live, alone: list[Any], six: list[str], shared: list[bool]
) -> None:
    bad = [CORPUS[what] for what in six]
    first, *refused, last = live.together(to(BATCHED, GOOD[0]), *(one.to(BATCHED) for one in bad), to(BATCHED, GOOD[1]))
    assert [got.status_code for got in refused] == [one.status for one in bad]
    assert all("message" in strict(got.content) for got in refused)
    for got, wanted in zip((first, last), alone, strict=True):
        assert got.status_code == 200, got.text[:300]
        assert_same_reply(strict(got.content), wanted)
    # Rows of one batch are timed together, to the microsecond.
    shared.append(first.json()["timing_ms"] == last.json()["timing_ms"])


def test_the_bad_and_the_good_did_share_their_batches(shared: list[bool]) -> None:
    """But for where a busy machine sent one of the eight too late."""
    assert sum(shared) >= 0.8 * len(SIXES)


# --- legal, though they look hostile --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (20_000, 2), (2, 20_000), (1, 3000)])
def test_pictures_of_odd_sizes_are_explained_and_said_to_be_enlarged(live: Live, size: tuple[int, int]) -> None:
    width, height = size
    picture = saved(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8), "PNG")
    body = live.explain({"methods": ["saliency"], "output": ["array", "overlay"]}, picture)
    assert body["placement"]["size"] == [width, height]
    assert any("smaller than the model's 224: it was enlarged" in warning for warning in body["warnings"])
    (one,) = body["explanations"]
    assert one["array"]["shape"] == [3, 224, 224]


def test_a_ribbon_in_its_own_size_costs_only_its_own_pixels(live: Live) -> None:
    picture = saved(np.zeros((2, 20_000, 3), np.uint8), "PNG")
    (one,) = live.explain({"methods": ["saliency"], "size": "original", "output": ["array"]}, picture)["explanations"]
    assert one["array"]["shape"] == [3, 2, 20_000]


def test_a_picture_of_one_pixel_that_unpacks_to_half_a_gigabyte_is_one_pixel(live: Live) -> None:
    pid = live.pids()[QUICK][0]
    before = psutil.Process(pid).memory_info().rss
    assert live.answer(content=inflated())["placement"]["size"] == [1, 1]
    assert psutil.Process(pid).memory_info().rss - before < 100e6


# --- below HTTP -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", WRONG)
def test_oddities_of_http_that_reach_the_handler_get_their_code(live: Live, what: str) -> None:
    message, status, said = WRONG[what]
    got = send(live.server, message)
    error = strict(got.body)
    assert (got.status, error["code"]) == (status, status), got.body[:300]
    assert said in error["message"]


@pytest.mark.parametrize("what", FRONTEND)
def test_what_torchserve_itself_refuses_reaches_no_worker(live: Live, what: str) -> None:
    message, status = FRONTEND[what]
    got = send(live.server, message)
    assert got.status == status, got.body[:300]
    # Its own answers have a type that ends so, ours have a field.
    assert b'"field"' not in got.body
    assert live.server.token("inference").encode() not in got.body


@pytest.mark.parametrize("header", ["X-A: a\r\n b: c\r\n", "X-A: \xff\xfe\r\n", "X: 1\r\n" * 500])
def test_odd_headers_below_http_change_nothing(live: Live, header: str) -> None:
    assert send(live.server, post(header)).status == 200


def test_a_body_shorter_than_it_says_waits_alone(live: Live) -> None:
    with pytest.raises(TimeoutError):
        send(live.server, post(length="999999"), timeout_s=1)
    assert live.ask(f"predictions/{QUICK}", content=photograph()).status_code == 200
