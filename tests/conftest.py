"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: threads that spin while they wait slow each other down many times over when servers, Java
# and browsers share the cores with the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from convlens.models import load
from convlens.runtime.torch_runtime import keep_freed_memory
from export.bundle import Bundle, bundle


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
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def default_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The default model's graphs, exported once for all tests: a minute's work."""
    kinds = ("embedding", "occlusion", "saliency", "guided_backprop")
    return bundle(load(device="cpu"), tmp_path_factory.mktemp("default") / "graphs", kinds=kinds)
