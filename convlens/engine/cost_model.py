"""What work takes on this machine with this model, in seconds: measured at first, refined by what each call took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Key = tuple[str, str]  # a method, and the pace at which it works (``Method.rate_key``)

# A measurement shorter than expected counts for more than a longer one: a busy moment makes any work longer and none
# shorter. Expecting too much refuses requests; expecting too little is harmless, since overlong work is stopped.
_WEIGHT_SHORTER, _WEIGHT_LONGER = 0.7, 0.2
_LARGEST_RATIO = 2.0  # one measurement moves the estimate as if it were at most this many times as long
_CALIBRATION_PASSES, _CALIBRATION_S = 4, 0.12
_OLD_S = 60.0


@dataclass(frozen=True)
class RateEstimate:
    """Seconds for a unit of work, and when they were last measured, by time.perf_counter()."""

    seconds: float
    measured: float = field(default_factory=lambda: time.perf_counter())  # looked up each time: a clock may be set

    @property
    def age(self) -> float:
        return time.perf_counter() - self.measured

    def moved_towards(self, seconds: float) -> RateEstimate:
        weight = _WEIGHT_SHORTER if seconds < self.seconds else _WEIGHT_LONGER
        return RateEstimate(self.seconds + weight * (min(seconds, _LARGEST_RATIO * self.seconds) - self.seconds))


class CostModel:
    """Seconds of a forward pass, and of a unit of each method's cost once that method has been called.

    The first measurement of anything includes its set-up (imports, kernels chosen, memory reserved); later ones are
    steady, and estimates rest on those alone. A unit that was not measured is taken for a forward pass of a single
    image; in batches most are quicker. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forward: RateEstimate | None = None
        self._methods: dict[Key, RateEstimate] = {}
        self._set_up: set[Key] = set()

    @property
    def age(self) -> float:
        """Seconds since a forward pass was last measured; infinite before ``calibrate``."""
        return self._forward.age if self._forward else float("inf")

    def calibrate(self, forward: Callable[[], object]) -> None:
        """Measure a few forward passes, about a tenth of a second in all or one that is longer, and keep the quickest.

        The first pass sets things up and is not measured: on a GPU it took 3 s and the next 20 ms, and a sweep judged
        by it was refused as a work of 752 s.
        """
        forward()
        steady = [_timed(forward)]
        while len(steady) < _CALIBRATION_PASSES - 1 and sum(steady) < _CALIBRATION_S:
            steady.append(_timed(forward))
        with self._lock:
            self._forward = RateEstimate(min(steady))

    def forward_seconds(self) -> float:
        """0 before ``calibrate``."""
        return self._forward.seconds if self._forward else 0.0

    def seconds(self, key: Key, units: float) -> float:
        """What so many units of this method's cost take; 0 before anything was measured."""
        with self._lock:
            estimate, forward_s = self._methods.get(key), self.forward_seconds()
        if estimate is None:
            return units * forward_s
        # An old measurement, maybe of a busy hour, never outweighs today's forward pass: what is refused for taking
        # too long is not run, so nothing would ever correct the estimate.
        return units * (min(estimate.seconds, forward_s) if estimate.age > _OLD_S else estimate.seconds)

    def learn_forward(self, seconds: float) -> None:
        """A row's share of a forward pass took so long. Ignored before ``calibrate``: it may include the set-up."""
        with self._lock:
            if self._forward:
                self._forward = self._forward.moved_towards(seconds)

    def learn(self, key: Key, units: float, seconds: float) -> None:
        """So many units of this method took so long.

        The first call includes the set-up and is left out; the second is the estimate, which moves towards each later
        one.
        """
        with self._lock:
            if key not in self._set_up or units <= 0:
                self._set_up.add(key)
                return
            estimate, rate = self._methods.get(key), seconds / units
            self._methods[key] = estimate.moved_towards(rate) if estimate else RateEstimate(rate)


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
