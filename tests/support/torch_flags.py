"""torch's flags for the arithmetic of float32, as they are when torch is imported."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from convlens.instrument import precision

BACKENDS: Any = torch.backends


@contextmanager
def fresh_flags(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process of a user's that has set nothing; those of the test run come back afterwards."""
    monkeypatch.setattr(precision, "_CHOSEN", threading.Event())
    before = precision._Snapshot.take()
    torch.set_float32_matmul_precision("highest")
    BACKENDS.fp32_precision = "none"
    BACKENDS.cudnn.allow_tf32 = True
    for flag in (BACKENDS.cuda.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn, BACKENDS.mkldnn.matmul):
        flag.fp32_precision = "none"
    try:
        yield
    finally:
        BACKENDS.fp32_precision = "none"
        before.put_back()
