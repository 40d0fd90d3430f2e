"""Trying again what another moment may mend: a full queue, a broken connection."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from convlens.client.errors import RemoteError, UnreachableError
from convlens.errors import ConvLensError, RequestError

Answer = TypeVar("Answer")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


@dataclass(frozen=True)
class RetryPolicy:
    """``timeout_s`` for a request with all its ``retries``, of which there may be none."""

    timeout_s: float
    retries: int = 0

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:  # NaN, too
            raise RequestError(f"timeout_s={self.timeout_s} leaves no time to answer; use more than 0")
        if self.retries < 0:
            raise RequestError(f"retries={self.retries}; use 0 or more")

    def run(self, send: Callable[[float], Answer]) -> Answer:
        """The answer of ``send(seconds left)``; only 503 and broken connections are tried again, and only in time."""
        deadline = time.monotonic() + self.timeout_s
        for attempt in range(self.retries):
            try:
                return send(deadline - time.monotonic())
            except (RemoteError, UnreachableError) as error:
                pause_s = _pause(attempt)
                if not _is_temporary(error) or time.monotonic() + pause_s >= deadline:
                    raise
                time.sleep(pause_s)
        return send(deadline - time.monotonic())


def _is_temporary(error: ConvLensError) -> bool:
    return isinstance(error, UnreachableError) or error.status == 503


def _pause(attempt: int) -> float:
    """Seconds: twice as long after each attempt."""
    longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)
    # At random, so that clients that failed together do not come back together.
    return random.uniform(longest / 2, longest)
