"""What all tests share: the data folder, threads, the graphs of the default model, and how the suite is spread."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")

# Before torch is imported: threads that spin while they wait slow each other down many times over when servers, Java
# and browsers share the cores with the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start, too: the cores are shared

import pytest
import torch
from filelock import FileLock
from xdist.scheduler import LoadGroupScheduling

from convlens.models import load
from convlens.runtime.torch_runtime import keep_freed_memory
from export.bundle import Bundle, bundle

pytest_plugins = ["server_fixtures"]


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


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all of pytest's workers, for what is dear to make; whoever makes it holds a file lock."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if WORKER else base


@pytest.fixture(scope="session")
def default_bundle(shared_folder: Path) -> Bundle:
    """The default model's graphs, exported once for all tests: a minute's work. To be read only."""
    kinds = ("embedding", "occlusion", "saliency", "guided_backprop")
    path = shared_folder / "default_bundle.pickle"
    with FileLock(path.with_suffix(".lock"), timeout=280):
        if not path.exists():
            path.write_bytes(pickle.dumps(bundle(load(device="cpu"), shared_folder / "default_bundle", kinds=kinds)))
        return pickle.loads(path.read_bytes())


# --- with pytest-xdist ------------------------------------------------------------------------------------------------


class _FilesAndGroups(LoadGroupScheduling):
    """A file's tests go to one worker, since they share its fixtures; so do those of one group."""

    def _split_scope(self, nodeid: str) -> str:
        group = super()._split_scope(nodeid)
        return nodeid.partition("::")[0] if group == nodeid else group


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _FilesAndGroups:
    config.option.loadscopereorder = False
    return _FilesAndGroups(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that ask a server are one group: they share the servers. It is the longest, so it comes first, and files
    with slow tests before the others, so that no worker is left with a long one at the end.
    """
    if not WORKER:
        return
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    for item in items:
        if item.get_closest_marker("live"):
            item.add_marker(pytest.mark.xdist_group("live"))
    items.sort(key=lambda item: (not item.get_closest_marker("live"), item.path not in slow))
