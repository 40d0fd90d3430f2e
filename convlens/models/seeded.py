"""The same untrained weights every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Inside, torch's CPU generator starts from ``seed``; afterwards it stands where it stood before.

    Only the CPU's: ``torch.manual_seed`` would reseed every GPU as well. Networks are built on the CPU.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
