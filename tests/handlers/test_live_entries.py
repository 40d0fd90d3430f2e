"""Through a live TorchServe: two entries of one archive, so that a flood of sweeps keeps no prediction waiting."""

from __future__ import annotations

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from live_server import APART, APART_SWEEP, Live, photograph

SWEEP = f"explanations/{APART_SWEEP}/1.0/occlusion"


def test_one_archive_makes_two_entries_each_with_workers_of_its_own(live: Live) -> None:
    pids = live.pids()
    assert {APART, APART_SWEEP} <= pids.keys()
    (quick,), (sweeping,) = pids[APART], pids[APART_SWEEP]
    assert quick != sweeping


def test_the_quick_entry_names_the_other_for_what_is_heavy(live: Live) -> None:
    got = live.ask(f"explanations/{APART}/1.0/occlusion", content=photograph())
    assert (got.status_code, got.json()["field"]) == (422, "methods.0")
    assert "/explanations/apart_sweep" in got.json()["message"]


def test_its_default_explanations_leave_out_what_is_heavy_and_say_so(live: Live) -> None:
    body = live.ask(f"explanations/{APART}", content=photograph()).json()
    assert [one["id"] for one in body["explanations"]] == ["saliency", "guided_backprop"]
    (warning,) = body["warnings"]
    assert "occlusion" in warning and "'apart_sweep'" in warning


def test_the_other_entry_answers_everything_under_its_own_name(live: Live) -> None:
    body = live.ask(f"explanations/{APART_SWEEP}", content=photograph()).json()
    assert [one["id"] for one in body["explanations"]] == ["saliency", "guided_backprop", "occlusion"]
    assert body["model"]["name"] == "apart_sweep"
    assert body["warnings"] == []


def test_a_sweep_that_cannot_end_in_time_is_refused_at_once_with_what_would_fit(live: Live) -> None:
    params = {"methods": [{"method": "occlusion", "options": {"window": 8, "stride": 1}}]}
    live.ask(f"predictions/{APART_SWEEP}", content=photograph())
    begun = time.perf_counter()
    body = live.explain(params, status=422, model=APART_SWEEP)
    assert time.perf_counter() - begun < 2
    assert body["field"] == "methods.0.options.stride"
    assert "would fit" in body["message"]


def test_predictions_stay_quick_during_a_flood_of_sweeps(live: Live) -> None:
    """By torch alone the default model's sweep takes a second or two. On two cores a worker that sweeps takes half of
    what a prediction would have, so twice as slow is its share.
    """

    def timed() -> float:
        begun = time.perf_counter()
        assert live.ask(f"predictions/{APART}", content=photograph()).status_code == 200
        return time.perf_counter() - begun

    alone = [timed() for _ in range(12)][2:]
    stop = threading.Event()

    def flood(_: int) -> list[int]:
        statuses = []
        while not stop.is_set():
            statuses.append(live.ask(SWEEP, content=photograph()).status_code)
        return statuses

    with ThreadPoolExecutor(6) as pool:
        swept = pool.map(flood, range(6))
        time.sleep(2)
        beside = [timed() for _ in range(12)]
        stop.set()
        statuses = [status for each in swept for status in each]
    # Sweeps that together would take too long for one batch are told to come again.
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 6
    sweep_s = min(live.ask(SWEEP, content=photograph()).elapsed.total_seconds() for _ in range(2))
    # In one queue each prediction would have waited for six sweeps; here it waits for none.
    assert statistics.median(beside) < sweep_s
    assert statistics.median(beside) < 10 * statistics.median(alone) + 0.2
