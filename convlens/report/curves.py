"""Curves as the points of SVG lines and areas: means with their intervals on axes that several panels share, and the
history of a value step by step, with its phases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Frame:
    """A drawing's size and the field of its curves within the axes, in SVG units."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    def x(self, fraction: float) -> float:
        return self.left + (self.right - self.left) * fraction

    def y(self, fraction: float) -> float:
        """From the bottom up."""
        return round(self.bottom - (self.bottom - self.top) * fraction, 1)


PANEL = Frame(260, 180, left=34, right=248, top=22, bottom=142)
# Text keeps its size where a drawing is as wide as its column: so there is one for desks and one for phones.
WIDE = Frame(800, 270, left=56, right=788, top=40, bottom=232)
NARROW = Frame(360, 240, left=48, right=352, top=40, bottom=202)

_MOST_BUCKETS = 300  # of a history, two points each: more are finer than a screen
_DECADES = 2  # from so many powers of ten on a history's axis is logarithmic

_Curve = Mapping[str, Any]
"""``fraction``, ``mean``, ``low`` and ``high``: a number a point; low and high None where there is no interval."""


@dataclass(frozen=True)
class Tick:
    """Where along its axis, in SVG units, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Scale:
    """The range of the values; the fractions run from 0 to 1. ``ticks`` are those of the values."""

    low: float
    high: float
    ticks: tuple[Tick, ...]
    frame: Frame = PANEL
    is_logarithmic: bool = False

    def y(self, value: float) -> float:
        return self.frame.y(_share(value, self.low, self.high, logarithmic=self.is_logarithmic))


@dataclass(frozen=True)
class Panel:
    """One method's curves; texts of points are empty where there is nothing to draw. ``label`` says them in words."""

    title: str
    label: str
    lines: tuple[str, ...]
    bands: tuple[str, ...]
    behind: tuple[str, ...]


def shared_scale(curves: Sequence[_Curve]) -> Scale:
    """From 0, or the lowest value if that is below, to the highest one, in round steps; interval ends count too."""
    values = [
        value
        for curve in curves
        for part in ("mean", "low", "high")
        for value in curve.get(part) or ()
        if _known(value)
    ]
    lowest, highest = min(values, default=0.0), max(values, default=1.0)
    lowest, highest = min(lowest, 0.0), max(highest, 0.0)
    return _linear_scale(lowest, highest, PANEL)


def _linear_scale(lowest: float, highest: float, frame: Frame) -> Scale:
    step = _round_step((highest - lowest) or 1.0)
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    last = max(last, first + 1)
    low, high = first * step, last * step
    decimals = max(0, -math.floor(math.log10(step)))
    ticks = [(n * step, f"{n * step:.{decimals}f}".replace("-", "−")) for n in range(first, last + 1)]
    return Scale(low, high, tuple(Tick(frame.y(_share(value, low, high)), text) for value, text in ticks), frame)


def draw_panel(title: str, curves: Sequence[_Curve | None], behind: Sequence[_Curve | None], scale: Scale) -> Panel:
    """At most two curves, None for one that is missing, before thin ones to compare with."""
    return Panel(
        title,
        _label(title, curves),
        tuple(_line(curve, scale) for curve in curves),
        tuple(_band(curve, scale) for curve in curves),
        tuple(_line(curve, scale) for curve in behind),
    )


def _label(title: str, curves: Sequence[_Curve | None]) -> str:
    said = [
        f"{line} line from {_brief(curve['mean'][0])} to {_brief(curve['mean'][-1])}"
        for line, curve in zip(("solid", "dashed"), curves, strict=False)
        if curve
    ]
    return f"{title}: {', '.join(said)}"


def _brief(value: float | None) -> str:
    return f"{value:.2f}" if _known(value) else "nothing"


def _line(curve: _Curve | None, scale: Scale) -> str:
    if curve is None:
        return ""
    pairs = zip(curve["fraction"], curve["mean"], strict=True)
    return _points([(fraction, value) for fraction, value in pairs if _known(value)], scale)


def _band(curve: _Curve | None, scale: Scale) -> str:
    """Along the upper ends of the intervals and back along the lower ones."""
    if curve is None or not curve.get("low") or not curve.get("high"):
        return ""
    rows = zip(curve["fraction"], curve["low"], curve["high"], strict=True)
    known = [(fraction, low, high) for fraction, low, high in rows if _known(low) and _known(high)]
    there, back = [(x, high) for x, _, high in known], [(x, low) for x, low, _ in reversed(known)]
    return _points([*there, *back], scale)


def _points(pairs: Sequence[tuple[float, float]], scale: Scale) -> str:
    if len(pairs) < 2:
        return ""
    return " ".join(f"{scale.frame.x(x):.1f},{scale.y(value):.1f}" for x, value in pairs)


def _share(value: float, low: float, high: float, *, logarithmic: bool = False) -> float:
    if logarithmic:
        value, low, high = math.log10(value), math.log10(low), math.log10(high)
    return (value - low) / (high - low)


def _round_step(span: float) -> float:
    """Of 1, 2 and 5 times a power of ten the smallest that needs at most five steps."""
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if span <= 5 * factor * power * (1 + 1e-9))


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


# ---- the history of a value


@dataclass(frozen=True)
class Phase:
    """A part of a run, from its first to its last step; steps count from 1."""

    title: str
    first: int
    last: int


@dataclass(frozen=True)
class Band:
    """Where a phase lies along the axis of the steps, in SVG units; ``number`` is that of the phase, from 1."""

    left: float
    width: float
    middle: float
    number: int


@dataclass(frozen=True)
class History:
    """One drawing of a value over the steps of a run; ``lines`` are interrupted where a step has no value."""

    frame: Frame
    lines: tuple[str, ...]
    scale: Scale
    steps: tuple[Tick, ...]
    bands: tuple[Band, ...]


def draw_history(
    values: Sequence[float], phases: Sequence[Phase] = (), frame: Frame = WIDE, *, is_loss: bool = False
) -> History | None:
    """One value per step, NaN where there is none; None where fewer than two are finite.

    The axis spans the values, in round steps. It is logarithmic for a loss above 0 that falls by two powers of ten or
    more. Of a long run the drawing keeps the extremes of each of 300 parts.
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return None
    scale = _history_scale(min(finite), max(finite), frame, is_loss=is_loss)
    last = len(values) - 1
    lines = tuple(
        _points([(n / last, values[n]) for n in _thinned(run, values)], scale) for run in _finite_runs(values)
    )
    return History(
        frame, tuple(filter(None, lines)), scale, _step_ticks(len(values), frame), _bands(phases, len(values), frame)
    )


def _history_scale(lowest: float, highest: float, frame: Frame, *, is_loss: bool) -> Scale:
    # Only a loss has a 0 that it approaches; on others, such as logits, ratios mean nothing.
    if is_loss and lowest > 0 and highest / lowest >= 10**_DECADES:
        first, last = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
        every = -(-(last - first) // 6)  # at most seven ticks
        low, high = 10.0**first, 10.0**last
        ticks = [
            Tick(frame.y(_share(10.0**n, low, high, logarithmic=True)), f"{10.0**n:g}")
            for n in range(first, last + 1, every)
        ]
        return Scale(low, high, tuple(ticks), frame, is_logarithmic=True)
    if highest == lowest:
        lowest, highest = (lowest - abs(lowest) / 2, highest + abs(highest) / 2) if lowest else (0.0, 1.0)
    return _linear_scale(lowest, highest, frame)


def _finite_runs(values: Sequence[float]) -> Iterator[range]:
    """The longest ranges of steps whose values are all finite."""
    edges = [-1, *(n for n, value in enumerate(values) if not math.isfinite(value)), len(values)]
    yield from (range(before + 1, after) for before, after in pairwise(edges) if after - before > 1)


def _thinned(run: range, values: Sequence[float]) -> list[int]:
    """The first and the last step, and of each of the parts between the steps with the least and the largest value."""
    size = -(-len(run) // _MOST_BUCKETS)
    if size < 3:
        return list(run)
    parts = [run[first : first + size] for first in range(0, len(run), size)]
    extremes = {end(part, key=values.__getitem__) for part in parts for end in (min, max)}
    return sorted(extremes | {run[0], run[-1]})


def _step_ticks(steps: int, frame: Frame) -> tuple[Tick, ...]:
    """The first step and round numbers of steps, those apart that would touch it."""
    every = max(1, round(_round_step(steps)))
    numbers = [1, *(n for n in range(every, steps + 1, every) if n > 1 + every / 4)]
    return tuple(Tick(round(frame.x((n - 1) / (steps - 1)), 1), str(n)) for n in numbers)


def _bands(phases: Sequence[Phase], steps: int, frame: Frame) -> tuple[Band, ...]:
    bands = []
    for number, phase in enumerate(phases, 1):
        # Halfway between the steps on both sides of a border.
        ends = (max(0.0, phase.first - 1.5), min(steps - 1.0, phase.last - 0.5))
        left, right = (frame.x(end / (steps - 1)) for end in ends)
        bands.append(Band(round(left, 1), round(right - left, 1), round((left + right) / 2, 1), number))
    return tuple(bands)
