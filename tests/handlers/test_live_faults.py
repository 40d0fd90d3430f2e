"""Through a live TorchServe: a worker that is killed, archives that cannot load, a queue that is full, a server ended."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from liveserver import photograph
from picturefiles import saved
from smallserver import SMALL, built, hurried, wait_for, worker_of

from convlens import image
from convlens.client import Client
from convlens.serving import archive
from convlens.serving.model_config import ArchiveOptions
from convlens.serving.server import Server

pytestmark = pytest.mark.live

PICTURE = saved(image.decode(photograph()).resize((96, 80)), "PNG")
QUICK = '{"methods": ["saliency"], "output": ["array"], "target": 5}'
SLOW = '{"methods": [{"method": "smoothgrad", "options": {"samples": 40}}], "output": []}'
RAISES = """
class Handler:
    def initialize(self, context):
        raise RuntimeError("this archive is broken")
"""


def ask(at: Server, params: str = QUICK, *, model: str = SMALL, timeout_s: float = 60) -> httpx.Response:
    form = {"data": ("a", PICTURE), "params": (None, params)}
    url = f"{at.inference_url}/predictions/{model}"
    return httpx.post(url, headers=at.headers("inference"), files=form, timeout=timeout_s, trust_env=False)


@dataclass(frozen=True)
class Sent:
    """One request: when it went out and came back, its code (0 for a broken connection), and what it said."""

    begun: float
    ended: float
    status: int
    said: Any


def sent(at: Server, params: str = QUICK) -> Sent:
    begun = time.monotonic()
    try:
        got = ask(at, params)
    except httpx.HTTPError as error:
        return Sent(begun, time.monotonic(), 0, repr(error))
    return Sent(begun, time.monotonic(), got.status_code, got.json())


def test_pitfall_8_a_killed_worker_costs_the_requests_in_flight_and_is_back_in_ten_seconds(small: Server) -> None:
    wanted = ask(small).json()["explanations"][0]["array"]["shape"], ask(small).json()["predictions"]
    stop, found = threading.Event(), list[Sent]()

    def keep_asking(_: int) -> None:
        while not stop.is_set():
            found.append(sent(small))

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(keep_asking, n) for n in range(8)]
        time.sleep(1.5)
        killed = time.monotonic()
        worker_of(small, SMALL).send_signal(signal.SIGKILL)
        time.sleep(0.5)
        back = wait_for(small, SMALL, within_s=10) + 0.5
        time.sleep(1.5)
        stop.set()
        for one in running:
            one.result()
    failed = [one for one in found if one.status != 200]
    print(
        "KILL",
        len(found),
        len(failed),
        [(round(f.begun - killed, 3), round(f.ended - killed, 3), f.status, str(f.said)[:120]) for f in failed],
        back,
        max(o.ended - o.begun for o in found),
    )
    assert back < 10
    assert 1 <= len(failed) <= 8
    assert all(one.begun <= killed + 0.1 for one in failed)
    assert sum(one.begun > killed for one in found) > 8
    for one in found:
        assert one.status != 200 or one.said["predictions"] == pytest.approx(wanted[1])


def test_pitfall_7_a_full_queue_answers_503_at_once_and_recovers(small: Server) -> None:
    with ThreadPoolExecutor(70) as pool:
        slow = [pool.submit(sent, small, SLOW) for _ in range(8)]
        time.sleep(0.5)
        found = [one.result() for one in [pool.submit(sent, small) for _ in range(60)]]
        assert {one.result().status for one in slow} <= {200, 503}
    refused = [one for one in found if one.status == 503]
    print(
        "FULL",
        len(refused),
        max(one.ended - one.begun for one in refused),
        [o.status for o in found],
        refused[0].said,
        max(o.result().ended - o.result().begun for o in slow),
    )
    assert {one.status for one in found} == {200, 503}
    assert len(refused) >= 20
    assert max(one.ended - one.begun for one in refused) < 3
    assert ask(small).status_code == 200


# --- archives that cannot load, and the end ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beside(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A good model beside one whose handler raises and one whose weights are damaged."""
    folder = tmp_path_factory.mktemp("beside")
    (folder / "raises.py").write_text(RAISES)
    raising = ArchiveOptions(handler=folder / "raises.py")
    shutil.copytree(small_folder / "model", folder / "model")
    shutil.copytree(small_folder / "gallery", folder / "gallery")
    weights = folder / "model" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000:] = bytes(1000)
    weights.write_bytes(data)
    archives = {
        SMALL: built(SMALL, small_folder),
        "raises": archive.build(name="raises", model_dir=None, store=folder / "store", options=raising),
        "damaged": built("damaged", folder),
    }
    with hurried(archives, folder / "run", first=SMALL) as started:
        yield started


def test_archives_that_cannot_load_leave_the_others_serving(beside: Server) -> None:
    found = [sent(beside) for _ in range(20)]
    assert {one.status for one in found} == {200}
    log = (beside.logs / "model_log.log").read_text()
    print([line[-200:] for line in log.splitlines() if "Error" in line][:10])
    assert "this archive is broken" in log
    assert "weights" in log


@pytest.mark.parametrize("model", ["raises", "damaged"])
def test_pitfall_8_a_model_that_did_not_load_is_told_by_an_inference_not_by_ping(beside: Server, model: str) -> None:
    ping = httpx.get(f"{beside.inference_url}/ping", headers=beside.headers("inference"), trust_env=False)
    got = ask(beside, model=model)
    print("PING", ping.status_code, ping.text[:100], got.status_code, got.text[:300])
    key = beside.key_file
    with Client(beside.inference_url, model=model, key_file=key) as client:
        assert not client.ready()
    with Client(beside.inference_url, model=SMALL, key_file=key) as client:
        assert client.ready()
    assert got.status_code in (500, 503)
