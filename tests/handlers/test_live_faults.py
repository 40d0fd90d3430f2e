"""Through a live TorchServe: a killed worker, archives that cannot load, a full queue, a server that is ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from image_files import saved
from live_grpc import calls
from live_server import photograph
from reply_comparison import assert_same_reply
from small_server import QUEUE, SMALL, built, started_with_bad_archives, wait_for, worker_of, worker_status

from convlens import image
from convlens.client.protocol.inference_pb2 import PredictionsRequest
from convlens.errors import ServerError
from convlens.torchserve import archive
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.torchserve.health import probe_all
from convlens.torchserve.server import Server

pytestmark = pytest.mark.live

PICTURE = saved(image.decode(photograph()).resize((96, 80)), "PNG")
QUICK = '{"methods": ["saliency"], "output": ["array"], "target": 5}'
SLOW = '{"methods": [{"method": "smoothgrad", "options": {"samples": 300}}], "output": []}'
SPARE = "spare"
RAISES = """
class Handler:
    def initialize(self, context):
        raise RuntimeError("this archive is broken")

    def handle(self, data, context):
        return ["{}"] * len(data)
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
    wanted = ask(small).json()
    stop, found = threading.Event(), list[Sent]()

    def keep_asking(_: int) -> None:
        while not stop.is_set():
            found.append(sent(small))

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(keep_asking, n) for n in range(8)]
        time.sleep(1.5)
        killed = time.monotonic()
        worker_of(small, SMALL).send_signal(signal.SIGKILL)
        back_s = wait_for(small, SMALL, within_s=10)
        time.sleep(1.5)
        stop.set()
        for one in running:
            one.result()
    failed = [one for one in found if one.status != 200]
    told = [(round(one.begun - killed, 2), round(one.ended - killed, 2), one.status) for one in failed]
    assert back_s < 10
    # TorchServe says 507, "Worker died.", of what was in the worker's hands; what came later waited and was answered.
    # What it was just handing over it may lose, on a busy machine: then nothing is said (0) until the client gives up.
    assert {one.status for one in failed} <= {507, 0} and len(failed) <= 8, told
    assert all(one.begun > killed - 0.2 for one in failed if one.status == 0), told
    assert all(one.begun < killed + 0.2 for one in failed), told
    later = [one for one in found if one.begun > killed + 0.2]
    assert len(later) > 8
    for one in found:
        if one.status == 200:
            assert_same_reply(one.said, wanted)


def test_pitfall_7_a_full_queue_answers_503_at_once_and_recovers(small: Server, client: httpx.Client) -> None:
    def at_once(_: int) -> tuple[int, float]:
        url = f"{small.inference_url}/predictions/{SMALL}"
        got = client.post(url, headers=small.headers("inference"), content=PICTURE)
        return got.status_code, got.elapsed.total_seconds()

    with ThreadPoolExecutor(80) as pool:
        slow = [pool.submit(sent, small, SLOW) for _ in range(8)]
        time.sleep(1)
        found = list(pool.map(at_once, range(60)))
        assert {one.result().status for one in slow} == {200}
    refused = [seconds for status, seconds in found if status == 503]
    assert {status for status, _ in found} == {200, 503}
    assert len(refused) >= 60 - QUEUE - 8
    assert max(refused) < 2
    assert ask(small).status_code == 200


def says_healthy(at: Server) -> bool:
    got = httpx.get(f"{at.inference_url}/ping", headers=at.headers("inference"), trust_env=False)
    return got.status_code == 200 and got.json()["status"] == "Healthy"


# --- archives that cannot load, and the end ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beside(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A good model beside one whose handler raises and one whose weights are damaged."""
    folder = tmp_path_factory.mktemp("beside")
    (folder / "raises.py").write_text(RAISES)
    raising = ArchiveOptions(handler=folder / "raises.py")
    shutil.copytree(small_folder / "model", folder / "model")
    shutil.copytree(small_folder / "gallery", folder / "gallery")
    weights = folder / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000] + bytes(1000))
    archives = {
        SMALL: built(SMALL, small_folder),
        SPARE: built(SPARE, small_folder),
        "raises": archive.build(name="raises", model_dir=None, store=folder / "store", options=raising),
        "damaged": built("damaged", folder),
    }
    with started_with_bad_archives(archives, folder / "run", first=SMALL) as started:
        yield started


@pytest.mark.parametrize("words", ["this archive is broken", "ModelError"])
def test_archives_that_cannot_load_say_why_in_the_log_and_leave_the_others_serving(beside: Server, words: str) -> None:
    until = time.monotonic() + 30
    while words not in (log := (beside.logs / "model_log.log").read_text()) and time.monotonic() < until:
        assert sent(beside).status == 200
    assert words in log


@pytest.mark.parametrize("model", ["raises", "damaged"])
def test_pitfall_8_a_model_that_did_not_load_is_told_by_an_inference_not_by_ping(beside: Server, model: str) -> None:
    assert says_healthy(beside)
    with pytest.raises(ServerError, match=model):
        probe_all(beside.inference_url, [SMALL, model], key_file=beside.key_file, timeout_s=2)
    assert SMALL in probe_all(beside.inference_url, [SMALL], key_file=beside.key_file)


def test_a_containers_probe_shows_a_model_that_did_not_load_while_ping_says_all_is_well(beside: Server) -> None:
    command = [sys.executable, "-m", "convlens.torchserve.health", "--url", beside.inference_url]
    command += ["--key-file", str(beside.key_file), "--model", "raises", "--timeout", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert says_healthy(beside)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).startswith("raises: ")


def test_pitfall_6_a_stream_of_requests_kills_torchserves_thread_and_only_an_inference_tells(beside: Server) -> None:
    """TorchServe's own fault, which no handler can mend: a proxy must let StreamPredictions2 through to nobody."""
    asked = PredictionsRequest(model_name=SPARE, input={"data": PICTURE}, sequenceId="s")
    token = tuple((name.lower(), value) for name, value in beside.headers("inference").items())
    with calls(beside) as over, pytest.raises(grpc.RpcError):
        list(over.stub.StreamPredictions2(iter([asked]), metadata=token, timeout=5))
    for _ in range(3):  # nor does it come back by itself, as a worker that is killed does
        with pytest.raises(ServerError, match="no answer"):
            probe_all(beside.inference_url, [SPARE], key_file=beside.key_file, timeout_s=1)
    assert worker_status(beside, SPARE) == "READY"
    assert says_healthy(beside)
    assert SMALL in probe_all(beside.inference_url, [SMALL], key_file=beside.key_file)


def test_a_server_told_to_end_cuts_off_what_is_in_flight_and_is_gone_in_ten_seconds(beside: Server) -> None:
    """TorchServe does not drain: whoever ends it must first keep requests away."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sent, beside, SLOW)
        time.sleep(0.5)
        assert not running.done()
        told = time.monotonic()
        os.kill(beside.pid, signal.SIGTERM)
        beside.process.wait(10)
    assert running.result().status == 0, "the connection was reset, not answered"
    assert running.result().ended - told < 2
