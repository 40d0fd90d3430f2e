"""Seconds that are expected: measured, refined by what happened, and not led astray by one busy moment."""

from __future__ import annotations

import time
from typing import Any

import pytest
from engines import engine, paused, replied, request
from manual_clock import ManualClock

from convlens.engine.cost_model import CostModel
from convlens.protocol.params import parse_params

pytestmark = pytest.mark.usefixtures("clock")
KEY = ("saliency", "")
A_PICTURE = 0.01


def measured(seconds: float) -> CostModel:
    costs = CostModel()
    costs.calibrate(lambda: time.sleep(seconds))
    return costs


def learnt(*rates: float) -> float:
    """What a unit is expected to take after calls that took so long a unit; the first one is never counted."""
    costs = CostModel()
    for seconds in (99.0, *rates):
        costs.learn(KEY, 2.0, 2 * seconds)
    return costs.seconds(KEY, 1.0)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([0.4], 0.4),
        ([0.4, 0.6], 0.4 + 0.2 * 0.2),
        ([0.4, 0.2], 0.4 - 0.7 * 0.2),
        ([0.4, 40.0], 0.4 + 0.2 * 0.4),  # one busy moment: no more than twice what was expected
        ([40.0, 0.4], 40.0 - 0.7 * 39.6),
        ([1.0] * 5, 1.0),
    ],
)
def test_what_is_expected_moves_quickly_to_shorter_and_slowly_to_longer_times(
    rates: list[float], expected: float
) -> None:
    assert learnt(*rates) == pytest.approx(expected)


def test_the_first_call_of_a_method_is_not_counted() -> None:
    costs = measured(0.002)
    costs.learn(KEY, 3.0, 60.0)
    assert costs.seconds(KEY, 3.0) == pytest.approx(3 * costs.forward_seconds())


def test_what_was_measured_long_ago_does_not_refuse_for_ever(clock: ManualClock) -> None:
    costs = measured(0.002)
    for _ in range(2):
        costs.learn(KEY, 1.0, 5.0)
    assert costs.seconds(KEY, 1.0) == pytest.approx(5.0)
    clock.advance(120)
    assert costs.seconds(KEY, 1.0) == pytest.approx(costs.forward_seconds())


def test_nothing_is_expected_of_what_was_never_measured() -> None:
    assert CostModel().seconds(KEY, 100.0) == 0.0
    assert CostModel().age == float("inf")


def test_a_pass_that_sets_things_up_is_never_taken_for_the_cost_of_a_pass() -> None:
    """A GPU's first pass took 3 s and the next ones 20 ms; a sweep of 169 windows was refused as a work of 752 s."""
    passes = iter([3.0] + [0.02] * 9)
    costs = CostModel()
    costs.calibrate(lambda: time.sleep(next(passes)))
    assert costs.forward_seconds() == pytest.approx(0.02)
    costs.learn(KEY, 169.0, 3.0)  # the first call sets things up as well
    assert costs.seconds(KEY, 169.0) == pytest.approx(169 * 0.02)


def test_measuring_takes_the_quickest_of_a_few_passes() -> None:
    naps = iter([0.05, 0.03, 0.004, 0.01])
    costs = CostModel()
    costs.calibrate(lambda: time.sleep(next(naps)))
    assert costs.forward_seconds() == pytest.approx(0.004)


@pytest.mark.parametrize(("seconds", "most"), [(0.001, 4), (0.1, 3), (0.5, 2)])
def test_measuring_ends_soon_on_slow_networks(seconds: float, most: int) -> None:
    passes: list[float] = []

    def forward() -> None:
        time.sleep(seconds)
        passes.append(seconds)

    CostModel().calibrate(forward)
    assert len(passes) <= most


@pytest.mark.parametrize(
    ("params", "forwards"),
    [
        ({"output": []}, 1),
        ({"methods": ["saliency"], "output": []}, 1 + 3),
        ({"methods": [{"method": "occlusion", "options": {"window": 8, "stride": 8}}], "output": []}, 1 + 9),
        ({"methods": [{"method": "smoothgrad", "options": {"samples": 5}}], "output": []}, 1 + 15),
        ({"methods": ["saliency"], "evaluate": {"steps": 6}, "output": []}, 1 + 3 + 12),
    ],
)
def test_an_estimate_is_what_the_work_takes(params: dict[str, Any], forwards: int) -> None:
    """Of a network that sleeps: 10 ms a picture, twice that on the way back."""
    live = engine(paused(A_PICTURE)[0])
    estimate = live.estimate(parse_params(params))
    assert estimate == pytest.approx(forwards * A_PICTURE)
    for _ in range(2):
        started = time.perf_counter()
        replied(live.run([request(0, **params)])[0])
        took = time.perf_counter() - started
    assert live.estimate(parse_params(params)) == pytest.approx(took)


def test_an_estimate_learns_that_the_machine_has_become_slower_and_quicker_again() -> None:
    module, pause = paused(0.002)
    live = engine(module)
    params = {"methods": [{"method": "occlusion", "options": {"window": 8, "stride": 8}}], "output": []}
    live.estimate(parse_params(params))

    def after(seconds: float, runs: int) -> float:
        pause.seconds = seconds
        for _ in range(runs):
            replied(live.run([request(0, **params)])[0])
        return live.estimate(parse_params(params))

    assert after(0.002, 2) == pytest.approx(10 * 0.002)
    assert after(0.02, 20) == pytest.approx(10 * 0.02, rel=0.3)
    assert after(0.002, 4) < 10 * 0.006


def test_an_engine_without_limits_of_time_measures_nothing() -> None:
    module, _ = paused(0.0)
    replied(engine(module).run([request(0)])[0])
    assert module.batches == [1]
