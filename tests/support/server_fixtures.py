"""The servers that live tests share, each started once a session: to ask, to ill-treat, to stand behind a proxy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import either_server
import httpx
import psutil
import pytest
from echo_server import echo_archives
from either_server import Either
from live_server import Connect, Live, default_archives
from ray_service import Started, started
from small_server import QUEUE, SMALL, built, packed, small_archives

from convlens.client import BaseClient, Client, GrpcClient
from convlens.torchserve import server
from convlens.torchserve.launcher import ServerSettings, group_members
from convlens.torchserve.server import Server


@contextmanager
def running(archives: Mapping[str, Path], run_dir: Path, **overrides: str) -> Iterator[Server]:
    """One thread a worker; stopped at the end, and then no process of it may be left."""
    settings = ServerSettings(threads=1, overrides=overrides)
    with server.running(archives=archives, run_dir=run_dir, settings=settings) as started:
        pids = [started.pid, *(process.pid for process in group_members(started.pid))]
        yield started
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The default model: no test may kill its workers, or leave them busy."""
    folder = tmp_path_factory.mktemp("live")
    archives, engine = default_archives(folder)
    # A proxy for the outside knows no loopback, and every wait is bounded.
    with running(archives, folder / "run") as started, httpx.Client(timeout=120, trust_env=False) as client:
        yield Live(started, engine, folder / "gallery", client)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network and its gallery, packed."""
    return packed(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def small(small_folder: Path) -> Iterator[Server]:
    """A small network with a short queue, for what takes many requests or hurts a worker."""
    with running(small_archives(small_folder), small_folder / "run", job_queue_size=str(QUEUE)) as started:
        yield started


@pytest.fixture(scope="session")
def ray_small(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """The small network on Ray Serve, from the archive that ``small`` serves."""
    if not (find_spec("ray") and find_spec("starlette")):
        pytest.skip("the optional package ray[serve] is not installed")
    with started(built(SMALL, small_folder), tmp_path_factory.mktemp("ray")) as service:
        yield service


@pytest.fixture(params=["torchserve", "ray"])
def either(request: pytest.FixtureRequest) -> Either:
    """The small network behind one server after the other."""
    if request.param == "ray":
        return either_server.ray(request.getfixturevalue("ray_small"))
    return either_server.torchserve(request.getfixturevalue("small"))


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """No network, but two entries that say what reached them."""
    folder = tmp_path_factory.mktemp("echo")
    with running(echo_archives(folder), folder / "run") as started:
        yield started


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """Of enough connections, none of which outlives the test."""
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(timeout=60, trust_env=False, limits=limits) as opened:
        yield opened


@pytest.fixture(params=["rest", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _connecting(at: Server, protocol: str) -> Iterator[Connect]:
    clients: list[BaseClient] = []

    def connect(**settings: Any) -> BaseClient:
        if not settings.keys() & {"token", "key_file"}:
            settings["key_file"] = at.key_file
        rest = protocol == "rest"
        clients.append(Client(at.inference_url, **settings) if rest else GrpcClient(at.grpc_address, **settings))
        return clients[-1]

    yield connect
    for one in clients:
        one.close()


@pytest.fixture
def connect(protocol: str, live: Live) -> Iterator[Connect]:
    """Makes clients of the live server, over both protocols; closed at the end."""
    yield from _connecting(live.server, protocol)


@pytest.fixture
def connect_small(protocol: str, small: Server) -> Iterator[Connect]:
    """The same of the small one."""
    yield from _connecting(small, protocol)
