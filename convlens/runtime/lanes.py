"""Runs of one graph side by side, a core each, instead of all cores on one run after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Lanes:
    """As many threads as there are runs to go on at once; safe to use from several threads.

    Threads that share a run wait for each other at its every step. Where there are many runs to make, each thread does
    better with one of its own: a sweep of 169 windows took 6 to 12 % less time on two cores.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="convlens-lane")

    def results(self, calls: Sequence[Callable[[], T]]) -> Iterator[T]:
        """What the calls give, in their order, as they are done; after an error, or when left, no more begin."""
        futures = [self._pool.submit(call) for call in calls]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
