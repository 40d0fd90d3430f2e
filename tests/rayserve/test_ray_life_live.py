"""Ray Serve as it runs: large replies, metrics, routes of its own, and a node that is killed under load."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from crowds import THUMBNAILS, assert_each_is_what_it_is_alone, batches, crowd, kinds, over_grpc, over_rest, questions
from either_server import replicas
from image_files import saved
from live_grpc import calls
from live_server import photograph
from ray_service import Started, kill_node, node
from small_server import SMALL

from convlens import image
from convlens.client import GrpcClient
from convlens.rayserve import server

PICTURE = saved(image.decode(photograph()).resize((96, 80)), "PNG")


@pytest.fixture
def ask(ray_small: Started) -> Iterator[Any]:
    live = ray_small.server
    with httpx.Client(timeout=60, trust_env=False, headers=live.headers(), base_url=live.inference_url) as client:
        yield client.request


def form(params: Any, picture: bytes = PICTURE) -> dict[str, Any]:
    return {"files": {"data": ("a", picture), "params": (None, json.dumps(params))}}


LARGE = saved(np.random.default_rng(0).integers(0, 255, (1000, 1200, 3), dtype=np.uint8), "JPEG")
WHOLE = {"methods": ["saliency"], "size": "original", "output": ["array"]}


def test_a_reply_of_twenty_megabytes_comes_whole(ask: Any) -> None:
    got = ask("POST", f"/predictions/{SMALL}", **form(WHOLE, LARGE))
    assert got.status_code == 200
    (one,) = got.json()["explanations"]
    assert one["array"]["shape"][-2:] == [1000, 1200]
    assert len(got.content) == int(got.headers["content-length"]) > 19_000_000


def test_a_reply_of_twenty_megabytes_comes_whole_over_grpc(ray_small: Started) -> None:
    """Pitfall 6: gRPC's own limit is 4 MB."""
    with calls(ray_small.server) as over:
        reply = over.unary(SMALL, {"data": LARGE, "params": json.dumps(WHOLE).encode()})
    assert len(reply) > 19_000_000
    assert json.loads(reply)["explanations"][0]["array"]["shape"][-2:] == [1000, 1200]


def test_more_bytes_than_allowed_are_refused_on_their_way(ask: Any) -> None:
    got = ask("POST", f"/predictions/{SMALL}", content=bytes(34 * 2**20))
    assert (got.status_code, got.json()["code"]) == (413, 413)


def test_a_crowd_with_requests_of_every_kind_gets_what_each_gets_alone(
    ray_small: Started, client: httpx.Client
) -> None:
    """Pitfall 1: predictions and methods share batches, over both protocols; sweeps go to a deployment of their own."""
    asked = questions(96, THUMBNAILS, kinds(64))
    with calls(ray_small.server) as over:
        alone = over_rest(ray_small.server, client, SMALL)
        replies = crowd([alone, over_grpc(over, SMALL)], asked)
    assert_each_is_what_it_is_alone(alone, asked, replies)
    assert len(batches(replies)) < len(replies), "no two requests shared a batch"


def counts(ask: Any) -> dict[str, float]:
    """Requests by method and code."""
    text = ask("GET", "/metrics").text
    found = re.findall(r"convlens_requests_total\{(.*)\} (\S+)", text)
    summed: Counter[str] = Counter()
    for labels, value in found:
        by_name = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        summed[f"{by_name['method']} {by_name['code']}"] += float(value)
    return dict(summed)


def settled_counts(ask: Any) -> dict[str, float]:
    """Once those of earlier tests have arrived, which takes a fraction of a second."""
    found, until = counts(ask), time.monotonic() + 20
    while time.monotonic() < until:
        time.sleep(1)
        if (now := counts(ask)) == found:
            break
        found = now
    return found


def test_the_metrics_count_what_was_sent_over_both_protocols_to_all_deployments(ask: Any, ray_small: Started) -> None:
    before = settled_counts(ask)
    for _ in range(3):
        ask("POST", f"/explanations/{SMALL}/1.0/saliency", content=PICTURE)
    ask(
        "POST",
        f"/predictions/{SMALL}",
        **form({"methods": [{"method": "occlusion", "options": {"window": 8, "stride": 8}}]}),
    )
    ask("POST", f"/predictions/{SMALL}", content=b"none")
    with GrpcClient(ray_small.server.grpc_address, model=SMALL, key_file=ray_small.server.key_file) as client:
        client.explain(PICTURE, methods=["saliency"])
    wanted = {"saliency 200": 4, "occlusion 200": 1, "predict 400": 1}
    until = time.monotonic() + 10
    while time.monotonic() < until:
        grown = {name: value - before.get(name, 0) for name, value in counts(ask).items()}
        if (grown := {name: value for name, value in grown.items() if value}) == wanted:
            return
        time.sleep(0.1)
    assert grown == wanted


@pytest.mark.parametrize(
    ("path", "status"),
    [("/ping", 200), ("/metrics", 200), (f"/v2/models/{SMALL}/ready", 200), (f"/v1/models/{SMALL}", 200),
     ("/v2/models/nosuch", 404), ("/v2/health/ready", 200)],
)  # fmt: skip
def test_health_and_metadata_need_the_token_like_everything_else(
    ask: Any, ray_small: Started, path: str, status: int
) -> None:
    assert ask("GET", path).status_code == status
    assert httpx.get(ray_small.server.inference_url + path, trust_env=False).status_code == 400


def test_the_page_at_the_root_names_what_is_served_and_runs_no_script(ray_small: Started) -> None:
    got = httpx.get(ray_small.server.inference_url, trust_env=False)
    assert (got.status_code, got.headers["content-security-policy"]) == (200, "default-src 'none'")
    assert f"/predictions/{SMALL}" in got.text


def test_the_token_is_in_no_file_of_the_service_but_its_key_file(ray_small: Started) -> None:
    token = ray_small.server.token().encode()
    temp = next(path for path in (ray_small.output.parent / "tmp").glob("cl-ray-*"))
    files = [path for folder in (ray_small.server.run_dir, temp) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path.name for path in files if token in path.read_bytes()] == ["key_file.json"]


def test_after_a_node_is_killed_under_load_answers_go_on_and_none_is_wrong(ray_small: Started) -> None:
    import ray

    live = ray_small.server
    ray.init(address=live.address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    try:
        with node(live.address) as added:
            two = with_replicas(ray_small.config, 2)
            server.deploy(two, timeout_s=120)
            statuses, gap = answers_while(live, lambda: kill_node(added))
        assert statuses.pop(200) > 40
        # What was on its way there is asked of another replica.
        assert statuses == {}
        assert gap < 15
    finally:
        ray.shutdown()


def test_a_killed_replica_costs_nobody_an_answer_and_another_one_takes_its_place(ray_small: Started) -> None:
    """Pitfall 8: what it had in hands, and what comes before the next one is up, waits for that."""
    (before,) = replicas(ray_small, "quick")
    statuses, gap = answers_while(ray_small.server, before.kill)
    assert set(statuses) == {200}
    assert gap < 45  # while the suite loads both cores
    assert before.pid not in {after.pid for after in replicas(ray_small, "quick")}


def with_replicas(described: dict[str, Any], count: int) -> dict[str, Any]:
    deployments = [{"name": f"{SMALL}-quick", "num_replicas": count}]
    return {**described, "applications": [{**described["applications"][0], "deployments": deployments}]}


def answers_while(live: server.RayServer, action: Any) -> tuple[Counter[int], float]:
    """The answers' statuses before and after the action, and the longest time without a good one after it."""
    found: list[tuple[float, int]] = []
    stop, wanted = threading.Event(), list[int]()

    def load() -> None:
        with httpx.Client(timeout=60, trust_env=False, headers=live.headers()) as client:
            while not stop.is_set():
                got = client.post(f"{live.inference_url}/predictions/{SMALL}", content=PICTURE)
                if got.status_code == 200:
                    wanted[:] = wanted or [one["index"] for one in got.json()["predictions"]]
                    assert [one["index"] for one in got.json()["predictions"]] == wanted
                found.append((time.monotonic(), got.status_code))

    def wait_for(count: int, *, seconds: float) -> None:
        """Until so many answers more have come, and so long at least."""
        until, begun = len(found) + count, time.monotonic()
        while (len(found) < until or time.monotonic() - begun < seconds) and time.monotonic() - begun < 30:
            time.sleep(0.05)

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load) for _ in range(4)]
        wait_for(20, seconds=0.5)
        acted = time.monotonic()
        action()
        wait_for(20, seconds=3.0)
        stop.set()
        for one in loads:
            one.result()
    good = [acted, *(at for at, status in found if status == 200 and at > acted)]
    return Counter(status for _, status in found), max(later - earlier for earlier, later in itertools.pairwise(good))
