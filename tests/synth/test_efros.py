"""Efros and Leung's texture: differences against loops, pixels from the source, stripes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from synthesis_runs import assert_resumes, period_of, run_to_end, stripes

from convlens.errors import RequestError
from convlens.synth.efros_leung import EfrosLeung, EfrosRun

RANDOM = np.random.default_rng(0)


def begun(saved: Callable[..., str], source: np.ndarray, **options: Any) -> EfrosRun:
    given = {"source_side": len(source), "height": 20, "width": 20, "window": 5} | options
    return EfrosLeung(source=saved(source), **given).begin(None)


def errors_one_by_one(work: EfrosRun, source: np.ndarray, y: int, x: int, window: int) -> np.ndarray:
    """As the paper has it: a Gaussian of window / 6.4, of known pixels alone, made to sum to 1."""
    reach = window // 2
    found = []
    for row in range(len(source) - window + 1):
        for column in range(source.shape[1] - window + 1):
            total = weights = 0.0
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    j, i = y + dy, x + dx
                    if not (0 <= j < 20 and 0 <= i < 20) or work.origin_HW2[j, i, 0] < 0:
                        continue
                    weight = np.exp(-(dy**2 + dx**2) / (2 * (window / 6.4) ** 2))
                    there, here = source[row + reach + dy, column + reach + dx], work.snapshot()[j, i]
                    total += weight * ((there.astype(float) - here) ** 2).sum() / 255**2
                    weights += weight
            found.append(total / weights)
    return np.array(found)


def test_differences_are_the_paper_s_window_by_window(saved: Callable[..., str]) -> None:
    source = RANDOM.integers(0, 255, (12, 12, 3)).astype(np.uint8)
    work = begun(saved, source)
    work.step()
    for y, x in ((8, 7), (12, 12), (7, 10)):
        np.testing.assert_allclose(work._errors(y, x), errors_one_by_one(work, source, y, x, 5), atol=1e-9)


def test_every_pixel_is_the_source_s_pixel_that_it_says(saved: Callable[..., str]) -> None:
    source = RANDOM.integers(0, 255, (16, 16, 3)).astype(np.uint8)
    work = begun(saved, source, height=22, width=27)
    found = run_to_end(work).images["texture"]
    assert found.shape == (22, 27, 3)
    np.testing.assert_array_equal(found, source[work.origin_HW2[..., 0], work.origin_HW2[..., 1]])


def test_stripes_keep_their_period(saved: Callable[..., str]) -> None:
    source = stripes(32, 8)
    work = begun(saved, source, height=48, width=48, window=11)
    found = run_to_end(work).images["texture"]
    assert period_of(found) == pytest.approx(8, rel=0.02)
    np.testing.assert_array_equal(found, np.broadcast_to(found[:1], found.shape))


def test_where_nothing_is_near_enough_more_is_allowed(saved: Callable[..., str]) -> None:
    source = RANDOM.integers(0, 255, (14, 14, 3)).astype(np.uint8)
    work = begun(saved, source, max_error=1e-6)
    outcome = run_to_end(work)
    assert outcome.facts["max_error"] > 1e-6
    assert (work.origin_HW2 >= 0).all()


def test_it_resumes_bit_by_bit(saved: Callable[..., str]) -> None:
    path = saved(RANDOM.integers(0, 255, (14, 14, 3)))
    job = EfrosLeung(source=path, source_side=14, height=18, width=18, window=5, seed=3)
    assert_resumes(lambda: job.begin(None))


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"window": 4}, "window", "odd and 3 or more"),
        ({"window": 99}, "window", "a window of 99 pixels is larger than the source of 64"),
        ({"height": 0}, "height", "from 3 to 1024"),
        ({"max_error": 0.0}, "max_error", "above 0"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        EfrosLeung(source="x.png", **options)
    assert caught.value.field == field


def test_a_source_of_one_colour_is_refused(saved: Callable[..., str]) -> None:
    with pytest.raises(RequestError, match="of one colour"):
        begun(saved, np.full((16, 16, 3), 9))
