"""Through a live TorchServe: sixteen clients at once over REST and gRPC, and a thousand requests of every kind."""

from __future__ import annotations

import httpx
from crowds import (
    PHOTOGRAPHS,
    THUMBNAILS,
    assert_each_is_what_it_is_alone,
    batches,
    crowd,
    kinds,
    over_grpc,
    over_rest,
    questions,
)
from live_grpc import calls
from live_server import BATCHED, QUICK, Live
from small_server import SMALL, worker_of

from convlens.torchserve.server import Server


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
