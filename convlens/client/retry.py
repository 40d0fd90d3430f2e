"""Trying again what another moment may mend: a full queue, a broken connection."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from convlens.client.errors import RemoteError, UnreachableError
from convlens.errors import ConvLensError, RequestError

Found = TypeVar("Found")

_FIRST_S, _LONGEST_S = 0.1, 5.0


@dataclass(frozen=True)
class RetryPolicy:
    """``timeout_s`` for a request with all its ``retries``, of which there may be none."""

    timeout_s: float
    retries: int = 0

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise RequestError(f"timeout_s={self.timeout_s} leaves no time to answer; use more than 0")
        if self.retries < 0:
            raise RequestError(f"retries={self.retries}; use 0 or more")

    def ask(self, once: Callable[[float], Found]) -> Found:
        """What ``once(seconds left)`` gives. Only 503 and broken connections are tried again, and only in time."""
        due = time.monotonic() + self.timeout_s
        for attempt in range(self.retries):
            try:
                return once(due - time.monotonic())
            except (RemoteError, UnreachableError) as error:
                pause = _pause(attempt)
                if not _may_mend(error) or time.monotonic() + pause >= due:
                    raise
                time.sleep(pause)
        return once(due - time.monotonic())


def _may_mend(error: ConvLensError) -> bool:
    return isinstance(error, UnreachableError) or error.status == 503


def _pause(attempt: int) -> float:
    """Twice as long each time, and drawn at random, so that clients that failed together do not come back together."""
    longest = min(_LONGEST_S, _FIRST_S * 2**attempt)
    return random.uniform(longest / 2, longest)
