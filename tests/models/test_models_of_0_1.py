"""A model that version 0.1.0 packed."""

from __future__ import annotations

from pathlib import Path

import torch
import written

from convlens.models.package import unpack


def test_it_opens_as_the_model_that_it_was(tmp_path: Path) -> None:
    folder = written.copied(tmp_path)
    packed, made = unpack(folder / "model", device="cpu"), written.network(folder)
    assert packed.spec == made.spec
    x_NCHW = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed.module(x_NCHW), made.module(x_NCHW), rtol=0, atol=0)
