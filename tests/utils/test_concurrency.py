"""Work in threads: in order, no more begun than was said, and nothing left running after an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from convlens.errors import RequestError
from convlens.utils.concurrency import ParallelRuns, batched, concurrent_map, ordered_map


def test_results_keep_their_order_however_long_each_takes() -> None:
    def slow(number: int) -> int:
        time.sleep(0.02 * (number % 3 == 0))
        return number * number

    assert list(ordered_map(slow, range(20), workers=4, ahead=8)) == [number * number for number in range(20)]


def test_no_more_are_begun_than_was_said() -> None:
    drawn: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(50):
            drawn.append(number)
            yield number

    for taken, _ in enumerate(ordered_map(abs, numbers(), workers=2, ahead=7), start=1):
        assert len(drawn) <= taken - 1 + 7


def test_an_error_is_raised_in_its_turn_and_ends_the_work() -> None:
    begun: list[int] = []

    def fail_at_three(number: int) -> int:
        begun.append(number)
        return 1 // (3 - number)

    results = ordered_map(fail_at_three, range(1000), workers=1, ahead=4)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(begun) <= 7


def test_threads_end_when_nobody_wants_the_rest() -> None:
    results = ordered_map(abs, range(1000), workers=3, ahead=9)
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("convlens-map")]


def test_results_come_in_order_whatever_order_they_are_done_in() -> None:
    def late(n: int) -> Callable[[], int]:
        def call() -> int:
            time.sleep(0.002 * (7 - n % 8))
            return n

        return call

    assert list(ParallelRuns(3).results([late(n) for n in range(24)])) == list(range(24))


def test_as_many_run_at_once_as_threads() -> None:
    both = threading.Barrier(2, timeout=10)
    assert list(ParallelRuns(2).results([both.wait] * 4)) is not None  # one at a time would wait for ever


def test_after_an_error_no_more_begin() -> None:
    begun: list[int] = []

    def call(n: int) -> Callable[[], int]:
        def result() -> int:
            begun.append(n)
            time.sleep(0.01)
            if n == 2:
                raise RequestError("the third")
            return n

        return result

    results, found = ParallelRuns(2).results([call(n) for n in range(50)]), []
    with pytest.raises(RequestError, match="the third"):
        for value in results:
            found.append(value)
    assert found == [0, 1]
    time.sleep(0.1)
    assert len(begun) < 10


@pytest.mark.parametrize(("items", "batches"), [(0, []), (4, [(0, 1), (2, 3)]), (5, [(0, 1), (2, 3), (4,)])])
def test_batches_are_full_but_for_the_last(items: int, batches: list[tuple[int, ...]]) -> None:
    assert list(batched(range(items), 2)) == batches


def test_a_batch_is_shared_out_in_order_and_one_item_stays_in_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.utils.concurrency.cores", lambda: 3)

    def slow(number: int) -> tuple[int, bool]:
        time.sleep(0.02 * (number == 0))  # the first one ends last
        return number, threading.current_thread() is threading.main_thread()

    assert concurrent_map(slow, range(5)) == [(number, False) for number in range(5)]
    assert concurrent_map(slow, [7]) == [(7, True)]
    assert concurrent_map(slow, []) == []
