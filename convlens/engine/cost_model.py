"""What work takes on this machine with this model, in seconds: measured, and refined by what it really took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Key = tuple[str, str]  # a method, and at which pace it works (``Method.rate_key``)

# A measurement counts for more where it is shorter than expected: a busy moment makes any work longer and none shorter,
# and what is expected too long refuses requests, while what takes longer than expected is stopped in time.
_SHORTER, _LONGER = 0.7, 0.2
_JUMP = 2.0  # and says at most so many times what was expected
_PASSES, _ENOUGH_S = 4, 0.12
_OLD_S = 60.0


@dataclass
class RateEstimate:
    """Seconds for a unit of work, and when that was last measured, by time.perf_counter()."""

    seconds: float
    measured: float = field(default_factory=time.perf_counter)

    @property
    def age(self) -> float:
        return time.perf_counter() - self.measured

    def moved(self, found: float) -> RateEstimate:
        weight = _SHORTER if found < self.seconds else _LONGER
        return RateEstimate(self.seconds + weight * (min(found, _JUMP * self.seconds) - self.seconds))


class CostModel:
    """Seconds of a forward pass, and of a unit of each method's cost once that was met.

    A unit that was not measured is taken for a forward pass of a single picture; in batches most are quicker. Safe to
    use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forward: RateEstimate | None = None
        self._paces: dict[Key, RateEstimate] = {}
        self._met: set[Key] = set()

    @property
    def age(self) -> float:
        """Seconds since a forward pass was last measured; infinite where none was."""
        return self._forward.age if self._forward else float("inf")

    def calibrate(self, forward: Callable[[], object]) -> None:
        """Take the quickest of a few forward passes, all together about a tenth of a second or a pass that is longer.

        The first one sets things up and counts only where there is no time for another.
        """
        took = [_timed(forward)]
        while len(took) < _PASSES and sum(took[1:]) < _ENOUGH_S and took[0] < 4 * _ENOUGH_S:
            took.append(_timed(forward))
        with self._lock:
            self._forward = RateEstimate(min(took))

    def forward_seconds(self) -> float:
        """0 before ``calibrate``."""
        return self._forward.seconds if self._forward else 0.0

    def seconds(self, key: Key, units: float) -> float:
        """What so many units of this method's cost take.

        What was measured long ago, maybe in a busy hour, is not held against what a forward pass says now: nobody would
        measure again what is refused for taking too long.
        """
        with self._lock:
            known, usual = self._paces.get(key), self.forward_seconds()
        if known is None:
            return units * usual
        return units * (min(known.seconds, usual) if known.age > _OLD_S else known.seconds)

    def learn_forward(self, seconds: float) -> None:
        """A picture's share of a forward pass took so long. Ignored before ``calibrate``: it may be the very first."""
        with self._lock:
            if self._forward:
                self._forward = self._forward.moved(seconds)

    def learn(self, key: Key, units: float, seconds: float) -> None:
        """So many units of this method took so long. The first call sets things up, imports among them: it is left out.

        The second is taken at its word, from then on expectation moves towards each.
        """
        with self._lock:
            if key not in self._met or units <= 0:
                self._met.add(key)
                return
            known, found = self._paces.get(key), seconds / units
            self._paces[key] = known.moved(found) if known else RateEstimate(found)


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
