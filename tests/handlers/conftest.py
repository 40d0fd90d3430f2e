"""One server for all live tests of the handler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from live_server import BATCHED, DELAY_MS, QUICK, Live
from small_server import QUEUE, SMALL, built, packed

from convlens.cli.demo import gallery_views
from convlens.engine.engine import Engine, EngineOptions
from convlens.gallery import Gallery, build_from
from convlens.models import load, pack
from convlens.torchserve import archive, server
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.torchserve.launcher import Settings, members
from convlens.torchserve.server import Server


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Stopped at the end of the session, and then no process of it may be left."""
    folder = tmp_path_factory.mktemp("live")
    classifier = load("packaged:efficientnet_lite0", device="cpu")
    build_from(list(gallery_views()), folder / "gallery", classifier)
    pack(classifier, folder / "model")
    archives = {
        name: archive.build(
            name=name,
            model_dir=folder / "model",
            gallery=folder / "gallery",
            store=folder / "store",
            options=ArchiveOptions(batch_size=8, max_batch_delay_ms=delay_ms),
        )
        for name, delay_ms in ((QUICK, 1), (BATCHED, DELAY_MS))
    }
    methods = (*EngineOptions.default_methods, "neighbours")
    engine = Engine(
        classifier, gallery=Gallery.open(folder / "gallery"), options=EngineOptions(default_methods=methods)
    )
    with server.running(archives=archives, run_dir=folder / "run") as started:
        pids = [started.pid, *(process.pid for process in members(started.pid))]
        # A proxy for the outside knows no loopback, and every wait is bounded.
        with httpx.Client(timeout=60, trust_env=False) as client:
            yield Live(started, engine, folder / "gallery", client)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network and its gallery, packed."""
    return packed(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def small(small_folder: Path) -> Iterator[Server]:
    """A small network with a short queue, for what takes many requests or hurts its worker."""
    archives = {SMALL: built(SMALL, small_folder)}
    settings = Settings(overrides={"job_queue_size": str(QUEUE)})
    with server.running(archives=archives, run_dir=small_folder / "run", settings=settings) as started:
        yield started


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """Of enough connections, none of which outlives the test."""
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(timeout=60, trust_env=False, limits=limits) as made:
        yield made
