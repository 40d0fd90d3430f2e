"""Through a live TorchServe: its metrics count what was sent, its logs tell it, and no client can forge either."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import photograph
from small_server import WATCHED

from convlens.client import GrpcClient
from convlens.errors import ConvLensError
from convlens.torchserve.server import Server

SAMPLE = re.compile(r"(\w+)\{(.*),\} (\S+)")
LABEL = re.compile(r'(\w+)="([^"]*)"')
COARSE = {"method": "occlusion", "options": {"window": 32, "stride": 32}}  # four windows
MODEL_LOG = " MODEL_LOG - "
FORGED = (
    "x\n[METRICS]convlens_requests_total.Count:1000|#ModelName:watched,Level:Model,method:forged,code:200"
    "|#type:COUNTER|#hostname:h,1\n[PID]1\nTorch worker started.\n"
    '{"logger":"convlens.access","status":299}\r\u2028[PID]1'
)


@dataclass(frozen=True)
class Watched:
    """An entry with two workers, of which no other test asks anything."""

    server: Server
    client: httpx.Client

    def post(self, path: str, *, headers: dict[str, str] | None = None, **sent: Any) -> int:
        all_headers = {**self.server.headers("inference"), **(headers or {})}
        return self.client.post(f"{self.server.inference_url}/{path}", headers=all_headers, **sent).status_code

    def form(self, params: Any, picture: bytes | None = None) -> int:
        files = {"data": ("a", picture or photograph()), "params": (None, json.dumps(params))}
        return self.post(f"predictions/{WATCHED}", files=files)

    def grpc(self) -> GrpcClient:
        return GrpcClient(self.server.grpc_address, model=WATCHED, key_file=self.server.key_file)

    def scraped(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        text = self.client.get(f"{self.server.metrics_url}/metrics").text
        found = [SAMPLE.fullmatch(line) for line in text.splitlines()]
        return {(one[1], frozenset(LABEL.findall(one[2]))): float(one[3]) for one in found if one}

    def count(self, metric: str, **labels: str) -> float:
        """The sum over all series of the metric with these labels."""
        wanted = set(labels.items())
        return sum(value for (name, have), value in self.scraped().items() if name == metric and wanted <= have)

    def pids(self) -> set[int]:
        url, headers = self.server.management_url, self.server.headers("management")
        (model,) = self.client.get(f"{url}/models/{WATCHED}", headers=headers).json()
        return {worker["pid"] for worker in model["workers"] if worker["status"] == "READY"}

    def accesses(self, *, beyond: int = 0) -> list[dict[str, Any]]:
        """The log's lines of requests, from the ``beyond``-th on."""
        lines = (self.server.logs / "model_log.log").read_text(encoding="utf-8").splitlines()
        said = [json.loads(line.partition(MODEL_LOG)[2]) for line in lines if f"{MODEL_LOG}{{" in line]
        return [one for one in said if one["logger"] == "convlens.access"][beyond:]


@pytest.fixture
def watched(small: Server, client: httpx.Client) -> Watched:
    return Watched(small, client)


def settled(read: Callable[[], Any], wanted: Any) -> Any:
    """What is read once it is as wanted, or after five seconds: the server takes lines over a little after replies."""
    ends = time.monotonic() + 5
    while (found := read()) != wanted and time.monotonic() < ends:
        time.sleep(0.1)
    return found


def grown(watched: Watched, before: dict[Any, float], metric: str, label: str) -> dict[str, float]:
    """By how much the metric has grown since, by this label's values."""
    grown: Counter[str] = Counter()
    for (name, labels), value in watched.scraped().items():
        if name == metric and (more := value - before.get((name, labels), 0.0)):
            grown[dict(labels)[label]] += more
    return dict(grown)


def test_a_methods_histogram_counts_every_request_by_every_way_in_on_all_workers(watched: Watched) -> None:
    before, pids = watched.scraped(), watched.pids()
    assert len(pids) == 2

    def over_grpc(*methods: Any) -> int:
        with watched.grpc() as client:
            client.explain(photograph(), methods=methods)
        return 200

    asked: list[Callable[[], int]] = [
        *[lambda: watched.post(f"predictions/{WATCHED}", content=photograph())] * 6,
        *[lambda: watched.post(f"explanations/{WATCHED}/1.0/saliency", content=photograph())] * 5,
        *[lambda: watched.form({"methods": [COARSE, "saliency"]})] * 4,
        *[lambda: over_grpc(COARSE)] * 3,
        *[lambda: over_grpc("guided_backprop")] * 2,
        *[lambda: watched.post(f"predictions/{WATCHED}", content=photograph()[:5000])] * 3,
    ]
    with ThreadPoolExecutor(8) as pool:
        assert Counter(pool.map(lambda one: one(), asked)) == {200: 20, 400: 3}

    def seconds() -> dict[str, float]:
        return grown(watched, before, "convlens_seconds_count", "method")

    wanted = {"predict": 6 + 3, "saliency": 5 + 4, "occlusion": 4 + 3, "guided_backprop": 2}
    assert settled(seconds, wanted) == wanted
    assert grown(watched, before, "convlens_requests_total", "method") == wanted
    assert grown(watched, before, "convlens_requests_total", "code") == {"200": 24, "400": 3}
    assert grown(watched, before, "convlens_request_seconds_count", "outcome") == {"answered": 20, "refused": 3}
    assert grown(watched, before, "convlens_errors_total", "type") == {"ImageError": 3}
    assert grown(watched, before, "convlens_windows_total", "method") == {"occlusion": 7 * 4}
    assert watched.pids() == pids


def test_seconds_are_seconds(watched: Watched) -> None:
    """The sum of what the histogram was told lies below what a client saw, and is no small part of it."""
    before = watched.scraped()
    begun = time.perf_counter()
    assert watched.form({"methods": [{"method": "occlusion", "options": {"window": 16, "stride": 2}}]}) == 200
    took = time.perf_counter() - begun
    settled(lambda: grown(watched, before, "convlens_windows_total", "method"), {"occlusion": 625.0})
    (told,) = grown(watched, before, "convlens_request_seconds_sum", "outcome").values()
    (swept,) = grown(watched, before, "convlens_seconds_sum", "method").values()
    assert 0.5 * took < told <= took
    assert 0 < swept <= told


def test_the_time_in_the_queue_is_what_the_senders_clock_says(watched: Watched) -> None:
    before = watched.scraped()
    headers = {"X-Request-Start": f"t={time.time() - 3:.3f}"}
    assert watched.post(f"predictions/{WATCHED}", content=photograph(), headers=headers) == 200
    series = "convlens_queue_wait_seconds"
    settled(lambda: grown(watched, before, f"{series}_count", "ModelName"), {WATCHED: 1.0})
    assert 3 <= grown(watched, before, f"{series}_sum", "ModelName")[WATCHED] < 5


def test_reply_bytes_are_those_that_the_client_got(watched: Watched) -> None:
    before = watched.scraped()
    headers = watched.server.headers("inference")
    url = f"{watched.server.inference_url}/explanations/{WATCHED}/1.0/saliency"
    answers = [watched.client.post(url, headers=headers, content=photograph()[:size]) for size in (None, 5000)]
    size = sum(len(answer.content) for answer in answers)
    assert settled(lambda: grown(watched, before, "convlens_reply_bytes_total", "ModelName"), {WATCHED: size}) == {
        WATCHED: size
    }


def test_torchserves_own_metrics_are_still_there(watched: Watched) -> None:
    assert watched.post(f"predictions/{WATCHED}", content=photograph()) == 200
    for metric in ("ts_inference_requests_total", "ts_inference_latency_microseconds", "ts_queue_latency_microseconds"):
        assert watched.count(metric, model_name=WATCHED) > 0
    settled(lambda: watched.count("PredictionTime", ModelName=WATCHED) > 0, True)
    # By name alone: the last request may have spent 0 ms between server and worker.
    assert {"PredictionTime", "WorkerThreadTime", "WorkerLoadTime", "Requests2XX"} <= {
        name for name, _ in watched.scraped()
    }


def test_one_line_tells_of_each_request_what_it_cost(watched: Watched) -> None:
    seen = len(watched.accesses())
    assert watched.form({"methods": [COARSE], "request_id": "r-17"}) == 200
    assert watched.form({"request_id": "r-18", "topk": 1}, photograph()[:5000]) == 400
    answered, refused = settled(lambda: len(watched.accesses(beyond=seen)), 2) and watched.accesses(beyond=seen)
    assert answered.pop("ms") > 0 and refused.pop("ms") > 0
    assert answered.pop("time") <= refused.pop("time")
    shared = {"level": "INFO", "logger": "convlens.access", "message": "request", "model": WATCHED, "batch": 1}
    wanted = {"request_id": "r-17", "methods": ["occlusion"], "status": 200, "error": None, "windows": 4}
    assert answered == {**shared, **wanted, "queue_ms": None}
    assert (refused["status"], refused["error"], refused["methods"]) == (400, "ImageError", [])


def hostile(watched: Watched) -> Iterator[tuple[str, Callable[[], int]]]:
    """Requests with text of ours in every place that a client can write to."""
    path = f"predictions/{WATCHED}"
    for name, params in {
        "request_id": {"request_id": FORGED},
        "key": {FORGED: 1},
        "value": {"dtype": FORGED},
        "target": {"target": FORGED[:250]},
        "method": {"methods": [FORGED[:120]]},
        "id": {"methods": [{"method": "saliency", "id": FORGED[:120]}]},
        "option": {"methods": [{"method": "saliency", "options": {FORGED: FORGED}}]},
    }.items():
        yield name, lambda params=params: watched.form(params)
    yield "file name", lambda: watched.post(path, files={"data": (FORGED, photograph())})
    yield "part", lambda: watched.post(path, files={FORGED: ("a", photograph())})
    yield "body", lambda: watched.post(path, content=FORGED.encode())
    yield "text", lambda: watched.post(path, content=FORGED.encode(), headers={"Content-Type": "text/plain"})
    yield "png text", lambda: watched.post(path, content=_png_with(FORGED))
    yield "path", lambda: watched.post(f"explanations/{WATCHED}/1.0/x%0A[METRICS]forged%0A[PID]1")
    yield "model", lambda: watched.post("predictions/x%0A[PID]1", content=b"x")
    yield (
        "header",
        lambda: watched.post(path, content=photograph(), headers={"X-Request-Start": "[PID]1", "A": "[PID]1"}),
    )
    yield "grpc params", lambda: _over_grpc(watched, WATCHED, {"request_id": FORGED})
    yield "grpc model", lambda: _over_grpc(watched, FORGED, {})
    yield "grpc version", lambda: _over_grpc(watched, WATCHED, {}, version=FORGED)


def _over_grpc(watched: Watched, model: str, params: dict[str, Any], **given: Any) -> int:
    client = GrpcClient(watched.server.grpc_address, model=model, key_file=watched.server.key_file, **given)
    with client, suppress(ConvLensError):
        client.predict(photograph(), **params)
    return 0


def _png_with(text: str) -> bytes:
    """A picture cut short, whose decoder has met the text."""
    import io

    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info, file = PngInfo(), io.BytesIO()
    info.add_text("Comment", text)
    Image.new("RGB", (64, 64)).save(file, "PNG", pnginfo=info)
    return file.getvalue()[:-40]


def test_no_text_of_a_client_becomes_a_line_of_a_log_or_a_metric(watched: Watched) -> None:
    pids, seen = watched.pids(), len(watched.accesses())
    sent = [(place, ask()) for place, ask in hostile(watched)]
    assert all(status < 500 for _, status in sent), sent
    time.sleep(1)
    assert watched.pids() == pids
    assert all({value for _, value in labels}.isdisjoint({"forged"}) for _, labels in watched.scraped())
    assert {one["status"] for one in watched.accesses(beyond=seen)} <= {200, 400, 413, 415, 422}
    prefix = re.compile(r"\d{4}-\d\d-\d\dT[\d:,]+ (\[\w+ *\] \S+ \S+ )?- ")
    for file in watched.server.logs.iterdir():
        for line in re.split("[\r\n\u2028\u2029\u0085]", file.read_text(encoding="utf-8")):
            told = prefix.sub("", line)
            assert not re.match(r"\[METRICS\]|Torch worker started|\{\"logger\"", told) or "forged" not in told, (
                file.name
            )
            assert told != "[PID]1" and not line.startswith(("[PID]", "[METRICS]")), (file.name, line)


def test_no_token_and_nothing_of_a_header_or_payload_is_in_any_log(watched: Watched) -> None:
    token = watched.server.token("inference")
    headers = {"X-Secret": "s3cret-header", "Cookie": "s3cret-cookie"}
    assert watched.post(f"predictions/{WATCHED}", content=photograph(), headers=headers) == 200
    assert watched.form({"methods": ["saliency"], "target": "s3cret-label"}) == 422
    assert watched.post(f"predictions/{WATCHED}", content=b"s3cret-payload") == 400
    time.sleep(0.5)
    everything = "".join(file.read_text(encoding="utf-8") for file in watched.server.logs.iterdir())
    assert token not in everything
    assert "s3cret" not in everything
    assert "tiger cat" not in everything  # what was in the picture


def test_the_counts_outlive_a_worker(watched: Watched) -> None:
    before, pids = watched.scraped(), watched.pids()
    assert watched.post(f"predictions/{WATCHED}", content=photograph()) == 200
    settled(lambda: grown(watched, before, "convlens_seconds_count", "method"), {"predict": 1.0})
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    ends = time.monotonic() + 60
    while len(watched.pids() - pids) < 2 and time.monotonic() < ends:
        time.sleep(0.2)
    answered = [watched.post(f"predictions/{WATCHED}", content=photograph()) for _ in range(4)]
    assert answered == [200] * 4
    wanted = {"predict": 5.0}
    assert settled(lambda: grown(watched, before, "convlens_seconds_count", "method"), wanted) == wanted


def test_a_metric_is_no_line_in_a_log(watched: Watched) -> None:
    """TorchServe's own configuration of its logs repeats each: at 50 requests a second some gigabytes a day."""
    assert watched.post(f"predictions/{WATCHED}", content=photograph()) == 200
    time.sleep(0.5)
    texts = {file: file.read_text(encoding="utf-8") for file in Path(watched.server.logs).iterdir()}
    assert not [file.name for file, text in texts.items() if "convlens_seconds" in text]
