"""Work done ahead by threads, with results in order and never more than a bounded number of them waiting."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from convlens.runtime.lanes import cores

__all__ = ["cores", "grouped", "in_order"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Generator[Result]:
    """``function`` of each item, in order, at most ``ahead`` of them begun and not yet taken.

    An item is drawn when its turn comes. What ``function`` raises is raised here; then, and when the iterator is
    closed, nothing more is begun.
    """
    # Threads: Pillow lets go of the interpreter while it decodes and resizes. Two of them read 2,190 pictures a second
    # on two cores, two processes, which must send the pixels over, 1,460.
    waiting = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="convlens-read") as pool:
        begun = deque(pool.submit(function, item) for item in itertools.islice(waiting, ahead))
        try:
            while begun:
                yield begun.popleft().result()
                begun.extend(pool.submit(function, item) for item in itertools.islice(waiting, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def grouped(items: Iterable[Item], size: int) -> Generator[tuple[Item, ...]]:
    """The items in tuples of ``size``, the last one shorter."""
    waiting = iter(items)
    while some := tuple(itertools.islice(waiting, size)):
        yield some
