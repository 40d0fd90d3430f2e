"""A batch is read in threads, for so long and no longer."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from convlens.errors import ConvLensError, OverloadError
from convlens.protocol.requests import ApiRequest
from convlens.serving.batch_reader import OnBlock, Sent, read_batch


def rows(*bodies: bytes) -> list[Sent]:
    return [({"body": body}, {}) for body in bodies]


class Reader:
    """Reads a body by waiting until it is told to stop where the body says ``slow``; the answer to it is empty."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.stopped = threading.Event()

    def __call__(self, row: Sent, on_block: OnBlock) -> ApiRequest | ConvLensError:
        body = bytes(row[0]["body"])
        self.begun.append(body)
        while body.startswith(b"slow"):
            time.sleep(0.01)
            try:
                on_block()
            except OverloadError as error:
                self.stopped.set()
                return error
        return ApiRequest(())


def test_a_row_that_takes_too_long_is_refused_and_its_neighbours_are_answered() -> None:
    answers = read_batch(Reader(), rows(b"a", b"slow", b"b"), limit_s=0.2)
    assert [type(answer) for answer in answers] == [ApiRequest, OverloadError, ApiRequest]
    assert "was not read within 0.2 s" in str(answers[1])


def test_what_is_still_read_when_the_time_is_over_is_stopped() -> None:
    reader = Reader()
    read_batch(reader, rows(b"a", b"slow"), limit_s=0.1)
    assert reader.stopped.wait(5)


def test_what_has_not_begun_when_the_time_is_over_never_begins() -> None:
    reader = Reader()
    slow = [b"slow" * (n + 1) for n in range(64)]  # more than there are threads
    answers = read_batch(reader, rows(*slow), limit_s=0.1)
    assert all(isinstance(answer, OverloadError) for answer in answers)
    assert len(reader.begun) < 64


def test_rows_of_few_bytes_are_read_first() -> None:
    bodies: list[Any] = [{"data": {"b64": "x" * 3000}}, b"y" * 2000, {"instances": ["z" * 10]}]
    first: list[Any] = []

    def read(row: Sent, _: OnBlock) -> ApiRequest | ConvLensError:
        first.append(row[0]["body"])
        time.sleep(0.05)
        return ApiRequest(())

    read_batch(read, [({"body": body}, {}) for body in bodies])
    assert first[0] == bodies[2]


@pytest.mark.parametrize("limit_s", [0.0, 0.05])
def test_a_row_alone_has_nobody_to_hold_and_takes_its_time(limit_s: float) -> None:
    def read(row: Sent, on_block: OnBlock) -> ApiRequest | ConvLensError:
        time.sleep(0.1)
        on_block()
        return ApiRequest(())

    assert read_batch(read, rows(b"a"), limit_s=limit_s) == [ApiRequest(())]
