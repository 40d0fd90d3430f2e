"""Through a live server, TorchServe or Ray Serve: the ways in which such a handler turns out a toy, as far as no other
file has them.

1 (item 0 decides for the batch): test_live_batches, test_live_grpc. 2, 5 (one client's style): test_live_clients,
test_live_hostile_batches. 6 (gRPC forgotten): test_live_grpc. 7 (overload): test_live_entries, test_live_faults.
8 (health lies): test_live_faults. 9 (state leaks): test_live_load. 10 (metrics): test_live_metrics. On Ray Serve 5 and
6 are in test_ray_contract_live, and 1, 8 and 10 in test_ray_life_live.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from either_server import Either
from image_files import saved
from live_grpc import calls
from live_server import Live, array, photograph, strict
from reply_comparison import assert_same_reply
from small_server import NETWORK, ODD_LABELS, SMALL

from convlens import image
from convlens.torchserve import server
from convlens.torchserve.server import Server

PHOTOGRAPHS = ("chelsea.png", "coffee.png", "rocket.jpg")
PICTURE = saved(image.decode(photograph()).resize((96, 80)), "PNG")


def test_pitfall_2_one_bad_item_costs_the_other_three_nothing(either: Either) -> None:
    good = [saved(image.decode(photograph(name)).resize((96, 80)), "PNG") for name in PHOTOGRAPHS]
    found = either.together(*(({}, picture) for picture in [*good, good[0][:5000]]))
    assert [one.status_code for one in found] == [200, 200, 200, 400]
    for one, picture in zip(found[:3], good, strict=True):
        assert_same_reply(strict(one.content), either.explain({}, picture))


@pytest.mark.parametrize("label", ODD_LABELS, ids=repr)
@pytest.mark.parametrize("accept", ["application/json", "image/png", "application/vnd.safetensors"])
def test_pitfall_3_labels_that_would_break_a_header_or_a_log_line_leave_the_worker_alive(
    either: Either, label: str, accept: str
) -> None:
    pids, asked = either.pids(), {"methods": ["saliency"], "target": label}
    got = either.ask(asked, PICTURE, accept=accept)
    assert (got.status_code, got.headers["content-type"]) == (200, accept)
    if accept == "application/json":
        assert strict(got.content)["explanations"][0]["target_label"] == label
    with calls(either.server) as over:
        parts = {"data": PICTURE, "params": json.dumps(asked | {"accept": accept}).encode()}
        assert len(over.unary(SMALL, parts)) == pytest.approx(len(got.content), rel=0.02)
    assert either.ask({"methods": ["saliency"], "target": label + "x"}, PICTURE).status_code == 422
    assert either.pids() == pids
    assert [log for log in either.logs() if b"MARK" in log.read_bytes()] == []


def test_pitfall_4_whatever_the_numbers_the_answer_is_json_that_any_parser_takes(either: Either) -> None:
    one_colour = saved(np.zeros((50, 50, 3), np.uint8), "PNG")
    asked = {"methods": ["saliency", "guided_backprop", "deconvnet", "grad_cam"], "output": ["array", "heatmap"]}
    for one in either.explain(asked, one_colour)["explanations"]:
        assert np.isfinite(array(one["array"])).all()
        assert np.isfinite(list(one["stats"].values())).all()


def test_pitfall_7_what_waited_beyond_its_deadline_is_given_up_without_work(either: Either) -> None:
    slow, sweep = ({"methods": [{"method": "smoothgrad", "options": {"samples": n}}], "output": []} for n in (300, 12))
    with ThreadPoolExecutor(8) as pool:
        busy = [pool.submit(either.ask, slow, PICTURE) for _ in range(3)]
        time.sleep(0.5)
        late = sweep | {"deadline_ms": 300, "sent_at": time.time()}
        waiting = [pool.submit(either.ask, late, PICTURE) for _ in range(4)]
        patient = pool.submit(either.ask, late | {"deadline_ms": 60_000}, PICTURE)
        assert [one.result().status_code for one in waiting] == [504] * 4
        assert patient.result().status_code == 200
        assert {one.result().status_code for one in busy} == {200}
    error = strict(waiting[0].result().content)
    assert (error["type"], error["field"]) == ("DeadlineError", "deadline_ms")
    assert "try again" in error["message"]


BREAKING: list[dict[str, Any]] = [
    # Found out when the network runs: a layer without a map, one that never runs, more neighbours than there are.
    {"methods": [{"method": "grad_cam", "options": {"layer": "classifier"}}]},
    {"methods": ["saliency", {"method": "grad_cam", "options": {"layer": "global_pool.flatten"}}]},
    {"methods": ["guided_backprop", {"method": "neighbours", "options": {"k": 1000}}]},
]


@pytest.mark.parametrize("asked", BREAKING, ids=str)
def test_pitfall_9_an_explanation_that_fails_half_way_leaves_nothing_behind(live: Live, asked: dict[str, Any]) -> None:
    whole = {"methods": ["saliency", "grad_cam"], "output": ["array"], "target": 282}

    def answer() -> list[Any]:
        body = live.explain(whole)
        return [body["predictions"], [one["array"] for one in body["explanations"]]]

    before, pids = answer(), live.pids()
    for _ in range(3):
        assert live.explain(asked, status=422)["field"]
    assert answer() == before, "bit for bit"
    assert live.pids() == pids


HALF_WAY: list[dict[str, Any]] = [
    {"methods": ["guided_backprop", {"method": "neighbours", "options": {"k": 1000}}]},
    {"methods": ["saliency", {"method": "grad_cam", "options": {"layer": "features.99"}}]},
]


@pytest.mark.parametrize("asked", HALF_WAY, ids=str)
def test_pitfall_9_an_explanation_that_fails_leaves_the_next_one_the_same_bits_on_both_servers(
    either: Either, asked: dict[str, Any]
) -> None:
    whole = {"methods": ["saliency", "grad_cam"], "output": ["array"], "target": 282}

    def answer() -> list[Any]:
        body = either.explain(whole, PICTURE)
        return [body["predictions"], [one["array"] for one in body["explanations"]]]

    before, pids = answer(), either.pids()
    for _ in range(3):
        assert either.explain(asked, PICTURE, status=422)["field"]
    assert answer() == before
    assert either.pids() == pids


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An archive that the command built in a clean folder, served from another one."""
    for name in ("clean", "other"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-c", "from convlens.cli.main import main; main()", "archive"]
    given = ["--name", "built", "--model", NETWORK, "--graphs", "none"]
    done = subprocess.run(
        [*command, *given], cwd=tmp_path / "clean", capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path / "other")
    path = tmp_path / "clean" / "model_store" / "built.mar"
    with server.running(archives={"built": path}, run_dir=tmp_path / "run") as started:
        yield started


@pytest.mark.live
def test_pitfall_10_an_archive_from_a_clean_folder_serves_from_another_and_the_token_is_in_no_log(
    elsewhere: Server, tmp_path: Path
) -> None:
    body = strict(
        httpx.post(
            f"{elsewhere.inference_url}/predictions/built",
            headers=elsewhere.headers("inference"),
            files={"data": ("a", PICTURE), "params": (None, '{"methods": ["saliency"], "request_id": "r-1"}')},
            timeout=60,
            trust_env=False,
        ).content
    )
    assert (body["model"]["name"], body["request_id"]) == ("built", "r-1")
    assert [one["id"] for one in body["explanations"]] == ["saliency"]
    assert list((tmp_path / "other").iterdir()) == []
    assert [path.name for path in (tmp_path / "clean").iterdir()] == ["model_store"]
    tokens = [elsewhere.token(kind).encode() for kind in ("inference", "management")]
    for log in elsewhere.logs.iterdir():
        assert not any(token in log.read_bytes() for token in tokens), log.name
