"""One server for all live tests of the clients, with the default model and a small one whose labels are no ASCII."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from live_clients import BATCH, FOREIGN, LABELS, QUEUE, Connect
from live_server import QUICK, Live

from convlens.cli.demo import gallery_views
from convlens.client import BaseClient, Client, GrpcClient
from convlens.engine.engine import Engine, EngineOptions
from convlens.gallery import Gallery, build_from
from convlens.models import load, pack
from convlens.torchserve import archive, server
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.torchserve.launcher import Settings, members


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Stopped at the end of the session, and then no process of it may be left."""
    folder = tmp_path_factory.mktemp("asked")
    classifier = load("packaged:efficientnet_lite0", device="cpu")
    build_from(list(gallery_views()), folder / "gallery", classifier)
    pack(classifier, folder / QUICK)
    (folder / "labels.json").write_text(json.dumps(LABELS), encoding="utf-8")
    named = f"size=64&resize=64&labels={folder / 'labels.json'}"
    pack(load(f"torchvision:squeezenet1_1:untrained?{named}", device="cpu"), folder / FOREIGN)
    archives = {
        name: archive.build(
            name=name,
            model_dir=folder / name,
            gallery=folder / "gallery" if name == QUICK else None,
            store=folder / "store",
            options=ArchiveOptions(batch_size=BATCH, max_batch_delay_ms=1),
        )
        for name in (QUICK, FOREIGN)
    }
    methods = (*EngineOptions.default_methods, "neighbours")
    engine = Engine(
        classifier, gallery=Gallery.open(folder / "gallery"), options=EngineOptions(default_methods=methods)
    )
    settings = Settings(overrides={"job_queue_size": str(QUEUE)})
    with server.running(archives=archives, run_dir=folder / "run", settings=settings) as started:
        pids = [started.pid, *(process.pid for process in members(started.pid))]
        with httpx.Client(timeout=60, trust_env=False) as client:
            yield Live(started, engine, folder / "gallery", client)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.fixture(params=["rest", "grpc"])
def connect(request: pytest.FixtureRequest, live: Live) -> Iterator[Connect]:
    """Makes clients of the server, with its token unless another source is given; closed at the end."""
    made: list[BaseClient] = []

    def client(**given: Any) -> BaseClient:
        if not given.keys() & {"token", "key_file"}:
            given["key_file"] = live.server.key_file
        if request.param == "rest":
            made.append(Client(live.server.inference_url, **given))
        else:
            made.append(GrpcClient(live.server.grpc_address, **given))
        return made[-1]

    yield client
    for one in made:
        one.close()


@pytest.fixture
def worker_pid(live: Live) -> Callable[[], int]:
    """The process id of the default model's worker; another one means that it died on the way."""

    def pid() -> int:
        url = f"{live.server.management_url}/models/{QUICK}"
        (described,) = live.client.get(url, headers=live.server.headers("management")).json()
        return int(described["workers"][0]["pid"])

    return pid


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
