"""Pictures as files, and the default model, for all synthesis tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convlens.models import Classifier, load


@pytest.fixture
def saved(tmp_path: Path):
    """Writes pixels as a PNG and gives its path."""

    def save(pixels_HWC: np.ndarray, name: str = "picture.png") -> str:
        Image.fromarray(np.asarray(pixels_HWC, np.uint8)).save(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture(scope="session")
def default_model() -> Classifier:
    return load(device="cpu")


@pytest.fixture(autouse=True)
def _global_chance_is_left_alone():
    """No work may draw from torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())
