"""A batch's requests are read in threads, and none waits long for its neighbours' images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

from convlens.errors import OverloadError
from convlens.image.codec import OnBlock
from convlens.types import no_op
from convlens.utils.concurrency import cores

__all__ = ["OnBlock", "Sent", "read_batch"]

# An image of 50 megapixels may take 2 s to read, a photograph of 12 takes 0.1 s. All of a batch is answered at once.
_READ_S = 1.5
_TICK_S = 0.05
_MOST_PARTS = 16  # of a body, as many as are read

Sent = tuple[dict[str, Any], Mapping[str, Any]]
"""The parts of a body, and headers."""
Call = TypeVar("Call")


def read_batch(
    read: Callable[[Sent, OnBlock], Call], rows: Sequence[Sent], *, limit_s: float = _READ_S
) -> list[Call | OverloadError]:
    """What ``read`` makes of each row, in order; of several rows an OverloadError for those that are not read in time.

    Rows of few bytes are read first. What is being read when the time is over ends with the image's next block.
    """
    if len(rows) == 1:
        return [read(rows[0], no_op)]
    stopped = threading.Event()

    def on_block() -> None:
        if stopped.is_set():
            raise _too_slow(limit_s)

    with_places = sorted(enumerate(rows), key=lambda row: _bytes(row[1][0]))
    # In threads: decoding an image takes milliseconds, in which Pillow releases the GIL.
    pool = ThreadPoolExecutor(max(1, min(cores(), len(rows))), thread_name_prefix="convlens-read")
    futures = {place: pool.submit(read, row, on_block) for place, row in with_places}
    _wait(list(futures.values()), limit_s)
    stopped.set()
    pool.shutdown(wait=False, cancel_futures=True)
    done = {place: future for place, future in futures.items() if future.done() and not future.cancelled()}
    return [done[place].result() if place in done else _too_slow(limit_s) for place in range(len(rows))]


def _wait(futures: Sequence[Future[Any]], limit_s: float) -> None:
    # In ticks: a process that is stopped for a while comes back to its images, and has lost no more than one of them.
    for _ in range(round(limit_s / _TICK_S)):
        if not wait(futures, timeout=_TICK_S).not_done:
            return


def _bytes(part: Any, depth: int = 3) -> int:
    """The bytes of a body's part, about: of a long list or object its beginning counts, and nothing deep inside."""
    if isinstance(part, bytes | bytearray | str):
        return len(part)
    values = part.values() if isinstance(part, Mapping) else part if isinstance(part, list) else ()
    return sum(_bytes(value, depth - 1) for value in islice(values, _MOST_PARTS)) if depth else 0


def _too_slow(limit_s: float) -> OverloadError:
    return OverloadError(
        f"this image was not read within {limit_s:g} s, and its neighbours in the batch cannot wait; try again, or "
        "send a smaller one"
    )
