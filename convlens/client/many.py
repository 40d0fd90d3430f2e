"""Several requests at once, their answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from convlens.errors import ConvLensError, RequestError

Item = TypeVar("Item")
Found = TypeVar("Found")


def in_order(ask: Callable[[Item], Found], items: Iterable[Item], *, at_once: int) -> Iterator[Found | ConvLensError]:
    """For each item its answer or its error, in the items' order; items are taken as they can be asked about."""
    if at_once < 1:
        raise RequestError(f"at_once={at_once} asks nothing; use 1 or more")
    return _in_order(ask, iter(items), at_once)


def _in_order(ask: Callable[[Item], Found], items: Iterator[Item], at_once: int) -> Iterator[Found | ConvLensError]:
    waiting: deque[Future[Found | ConvLensError]] = deque()
    with ThreadPoolExecutor(at_once, thread_name_prefix="convlens-client") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(_as_value, ask, item))
                # One is kept back for each thread, so that none idles while the caller looks at an answer.
                if len(waiting) >= 2 * at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


def _as_value(ask: Callable[[Item], Found], item: Item) -> Found | ConvLensError:
    try:
        return ask(item)
    except ConvLensError as error:
        return error
