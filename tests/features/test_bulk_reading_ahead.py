"""Reading while embedding: in order, and never more pictures at a time than were meant."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from extractions import mixed, photographs

from convlens.features.embedder import torch_embedder
from convlens.features.image_list import picture_files
from convlens.features.loader import embedded_files
from convlens.utils.concurrency import ordered_map

WAIT = 30


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
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("convlens-read")]


def test_only_a_few_batches_are_in_memory_and_the_next_is_read_while_one_is_embedded(tmp_path: Path) -> None:
    files, batch = picture_files(photographs(tmp_path / "pictures", 60)), 4
    plain = torch_embedder(mixed(), batch=batch)
    drawn, embedded, most = [0], [0], [0]
    ahead = threading.Event()

    def counted() -> Iterator[tuple[str, Path]]:
        for item in files.items():
            drawn[0] += 1
            if drawn[0] > batch:
                ahead.set()
            yield item

    def embed(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        most[0] = max(most[0], drawn[0] - embedded[0])
        embedded[0] += len(pixels)
        assert ahead.wait(WAIT)
        return plain.embed(pixels)

    watched = replace(plain, embed=embed)
    assert sum(len(each.pictures) for each in embedded_files(counted(), watched, batch=batch, workers=2)) == 60
    assert most[0] <= 3 * batch  # one being embedded, two read ahead; not the 60 that there are
