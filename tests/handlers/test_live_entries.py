"""Through a live TorchServe: two entries of one archive, so that a flood of sweeps keeps no prediction waiting."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from live_server import photograph

from convlens.models import load, pack
from convlens.torchserve import archive, server
from convlens.torchserve.archive import entries
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.torchserve.server import Server

pytestmark = pytest.mark.live

TIMEOUT_S = 120
SWEEP = "explanations/apart_sweep/1.0/occlusion"


@dataclass(frozen=True)
class Entries:
    server: Server
    client: httpx.Client

    def ask(self, path: str, **sent: Any) -> httpx.Response:
        headers = self.server.headers("inference")
        return self.client.post(f"{self.server.inference_url}/{path}", headers=headers, **sent)

    def form(self, params: str) -> dict[str, Any]:
        return {"files": {"data": ("a", photograph()), "params": (None, params)}}


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entries]:
    """The default model by torch alone, so that its sweep takes a second or two."""
    folder = tmp_path_factory.mktemp("entries")
    pack(load("packaged:efficientnet_lite0", device="cpu"), folder / "model")
    section = {"max_cost": 1e6}  # so that seconds are what refuses
    options = ArchiveOptions(sweeps_at="apart_sweep", response_timeout_s=TIMEOUT_S, section=section)
    path = archive.build(name="apart", model_dir=folder / "model", store=folder / "store", options=options)
    with (
        server.running(archives=entries(path), run_dir=folder / "run") as started,
        httpx.Client(timeout=120, trust_env=False) as client,
    ):
        yield Entries(started, client)


def test_one_archive_makes_two_entries_each_with_workers_of_its_own(apart: Entries) -> None:
    url, headers = apart.server.management_url, apart.server.headers("management")
    pids = [
        apart.client.get(f"{url}/models/{name}", headers=headers).json()[0]["workers"][0]["pid"]
        for name in apart.server.models
    ]
    assert apart.server.models == ("apart", "apart_sweep")
    assert len(set(pids)) == 2


def test_the_quick_entry_names_the_other_for_what_is_heavy(apart: Entries) -> None:
    got = apart.ask("explanations/apart/1.0/occlusion", content=photograph())
    assert (got.status_code, got.json()["field"]) == (422, "methods.0")
    assert "/explanations/apart_sweep" in got.json()["message"]


def test_its_default_explanations_leave_out_what_is_heavy_and_say_so(apart: Entries) -> None:
    body = apart.ask("explanations/apart", content=photograph()).json()
    assert [one["id"] for one in body["explanations"]] == ["saliency", "guided_backprop"]
    (warning,) = body["warnings"]
    assert "occlusion" in warning and "'apart_sweep'" in warning


def test_the_other_entry_answers_everything_under_its_own_name(apart: Entries) -> None:
    body = apart.ask("explanations/apart_sweep", content=photograph()).json()
    assert [one["id"] for one in body["explanations"]] == ["saliency", "guided_backprop", "occlusion"]
    assert body["model"]["name"] == "apart_sweep"
    assert body["warnings"] == []


def test_a_sweep_that_cannot_end_in_time_is_refused_at_once_with_what_would_fit(apart: Entries) -> None:
    params = '{"methods": [{"method": "occlusion", "options": {"window": 8, "stride": 1}}]}'
    apart.ask("predictions/apart_sweep", content=photograph())
    begun = time.perf_counter()
    got = apart.ask("predictions/apart_sweep", **apart.form(params))
    assert time.perf_counter() - begun < 2
    assert (got.status_code, got.json()["field"]) == (422, "methods.0.options.stride")
    assert "would fit" in got.json()["message"]


def test_predictions_stay_quick_during_a_flood_of_sweeps(apart: Entries) -> None:
    """On two cores a worker that sweeps takes half of what a prediction would have, so twice as slow is its share."""

    def timed() -> float:
        begun = time.perf_counter()
        assert apart.ask("predictions/apart", content=photograph()).status_code == 200
        return time.perf_counter() - begun

    alone = [timed() for _ in range(12)][2:]
    stop = threading.Event()

    def flood(_: int) -> list[int]:
        statuses = []
        while not stop.is_set():
            statuses.append(apart.ask(SWEEP, content=photograph()).status_code)
        return statuses

    with ThreadPoolExecutor(6) as pool:
        swept = pool.map(flood, range(6))
        time.sleep(2)
        beside = [timed() for _ in range(12)]
        stop.set()
        statuses = [status for each in swept for status in each]
    # Sweeps that together would take too long for one batch are told to come again.
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 6
    sweep_s = min(apart.ask(SWEEP, content=photograph()).elapsed.total_seconds() for _ in range(2))
    # In one queue each prediction would have waited for six sweeps; here it waits for none.
    assert statistics.median(beside) < sweep_s
    assert statistics.median(beside) < 10 * statistics.median(alone) + 0.2
