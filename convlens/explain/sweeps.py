"""Which way a sweep takes: of those that give the same scores the fastest, by how long each took the last time."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from convlens.errors import RequestError
from convlens.explain.ways import OnWindows, Way
from convlens.explain.windows import Windows
from convlens.runtime.contract import Precision, Strategy
from convlens.runtime.memory import RAISED, free, out_of_memory
from convlens.types import Floats, ScoreKind


class Sweeps:
    """The ways of sweeping that one model has; safe to use from several threads.

    ``ways`` come in the order in which they are expected to be fast. Each that fits is taken once, in that order; from
    then on the one that took least time a window when it was last taken. So nothing is computed just to be timed, and a
    way that has become slow is left.
    """

    def __init__(self, ways: Sequence[Way]) -> None:
        self.ways = tuple(ways)
        self._seconds: dict[tuple[Way, int], float] = {}  # by way and window; a window's work hardly depends on more

    def choose(self, windows: Windows, *, strategy: Strategy = "full", precision: Precision = "float32") -> Way | None:
        """The way to take now, or None where none of that strategy and precision fits."""
        allowed = [way for way in self.ways if strategy in way.strategies and way.precision == precision]
        fitting = [way for way in allowed if way.fits(windows)]
        untried = [way for way in fitting if (way, windows.window) not in self._seconds]
        if untried:
            return untried[0]
        return min(fitting, key=lambda way: self._seconds[way, windows.window], default=None)

    @property
    def reference(self) -> Way:
        """A way that scores single windows in full precision, for comparisons."""
        return next(way for way in self.ways if (way.kind, way.precision) == ("batches", "float32"))

    def pace(self, way: Way, windows: Windows) -> float | None:
        """Seconds a window when this way was last taken with windows of this size; None where it never was."""
        return self._seconds.get((way, windows.window))

    def require(self, windows: Windows, strategy: Strategy) -> tuple[Way, str]:
        """The way to take now, in full precision, and what the user should know of it.

        Where the graph for an ``incremental`` sweep says that a full one is faster, any way of making that will do.
        RequestError for ``incremental`` without a graph of these windows.
        """
        way = self.choose(windows, strategy=strategy)
        if way is None:
            raise RequestError(
                f"strategy={strategy!r} needs a graph of these windows; write one by `convlens export occlusion "
                f"--strategy {strategy} --window {windows.window} --stride {windows.stride}` and give it by --graphs",
                field="options.strategy",
            )
        if strategy == "full":
            return way, ""
        return (self.choose(windows) or way) if "full" in way.strategies else way, way.note

    def timed(
        self,
        way: Way,
        x_CHW: Tensor,
        target: int,
        windows: Windows,
        fill: float,
        score: ScoreKind,
        on_windows: OnWindows,
    ) -> Floats:
        """The scores by this way; how long it took is remembered.

        Where memory does not suffice for a graph of the whole sweep, the windows go in batches, which need less.
        """
        started = time.perf_counter()
        try:
            score_RQ = way.scores(x_CHW, target, windows, fill, score, on_windows)
        except RAISED as error:
            if not out_of_memory(error) or way.kind == "batches" or way.precision != self.reference.precision:
                raise
        else:
            self._seconds[way, windows.window] = (time.perf_counter() - started) / len(windows)
            return score_RQ
        free()
        return self.reference.scores(x_CHW, target, windows, fill, score, on_windows)
