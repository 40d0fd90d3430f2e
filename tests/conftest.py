"""What all tests share: the data folder, threads, the graphs of the default model, and how the suite is spread."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")

# Before torch is imported: threads that spin while they wait slow each other down many times over when servers, Java
# and browsers share the cores with the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Before ray is imported: its clusters stay on the loopback address, ask for their token, and report to nobody.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray ends its workers where the machine's memory is nearly full, whoever has it: here servers and browsers.
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
if WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start, too: the cores are shared

import pytest
import torch
from graph_cache import GraphCache
from torch.onnx._internal import _lazy_import as lazy_imports
from xdist.scheduler import LoadScopeScheduling

from convlens.runtime.torch_runtime import keep_freed_memory
from export.bundle import Bundle

pytest_plugins = ["server_fixtures"]
SERVERS = {"live", "small", "ray_small", "either", "echo"}  # its fixtures


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with pictures and weights beside the repository; tests that need it skip cleanly without it."""
    given = os.environ.get("CONVLENS_TEST_DATA", "")
    folder = Path(given)
    if not given or not (folder / "data" / "imagenet" / "labels.csv").is_file():
        pytest.skip("set CONVLENS_TEST_DATA to a folder with data/imagenet and weights/")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _as_our_processes_run() -> None:
    keep_freed_memory()
    torch.set_num_threads(1 if WORKER else min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session", autouse=True)
def _operators_are_listed_once() -> None:
    """torch's exporter asks onnxscript at every export for the same 500 operators, which parses each one's source: a
    third of the time that a small network takes.
    """
    apis: Any = lazy_imports.onnxscript_apis  # onnxscript takes a second to load: it waits for the first export

    @functools.cache
    def operators() -> Any:
        return importlib.import_module(apis._name).get_torchlib_ops()

    apis.get_torchlib_ops = operators


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if WORKER else base


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(shared_folder: Path) -> Iterator[None]:
    """Graphs are kept in a folder of the tests, and commands do not export where a test does not ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVLENS_CACHE", str(shared_folder / "cache"))
        patch.setenv("CONVLENS_ACCELERATE", "0")
        yield


@pytest.fixture(scope="session")
def exported(shared_folder: Path) -> GraphCache:
    """Exports a network once for all tests and all of pytest's workers: ``exported(classifier, kind, **options)``."""
    folder = shared_folder / "exported"
    folder.mkdir(exist_ok=True)
    return GraphCache(folder)


@pytest.fixture(scope="session")
def default_bundle(exported: GraphCache) -> Bundle:
    """The default model's graphs, exported once for all tests."""
    return exported.default_bundle()


# --- with pytest-xdist ------------------------------------------------------------------------------------------------


class _ByFile(LoadScopeScheduling):
    """A file's tests go to one worker, since they share its fixtures, and all files of live tests to the same one:
    they share servers. Their names contain "live".
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "live" if "live" in Path(file).name else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _ByFile:
    config.option.loadscopereorder = False  # the order is that of pytest_collection_modifyitems
    return _ByFile(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that ask a shared server as live, before ``-m`` selects.

    For workers of pytest-xdist live tests come first, which take longest together, and files with slow tests before
    the others: no worker should begin a long one at the end.
    """
    for item in items:
        if not SERVERS.isdisjoint(item.fixturenames):
            item.add_marker("live")
        if item.get_closest_marker("live") and "live" not in item.path.name:
            raise pytest.UsageError(f"{item.nodeid} asks a server: the name of its file must contain 'live'")
    if WORKER:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: ("live" not in item.path.name, item.path not in slow))
