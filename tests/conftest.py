"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: threads that spin while they wait slow each other down many times over when servers, Java
# and browsers share the cores with the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from convlens.runtime.torch_ import keep_freed_memory


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
