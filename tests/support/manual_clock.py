"""A clock that moves only where a test, or a network that pauses, says so: seconds are exact on any busy machine."""

from __future__ import annotations

import time

import pytest


class ManualClock:
    """Takes the place of ``time.perf_counter``, ``time.time`` and ``time.sleep`` until ``patch`` is undone."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        began = time.time() - self.now
        patch.setattr(time, "perf_counter", lambda: self.now)
        patch.setattr(time, "time", lambda: began + self.now)
        patch.setattr(time, "sleep", self.advance)

    def advance(self, seconds: float) -> None:
        self.now += seconds
