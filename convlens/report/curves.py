"""Curves with their intervals as the points of SVG lines and areas, on axes that several panels share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# In SVG units: a panel, and the field of its curves within the axes.
WIDTH, HEIGHT = 260, 180
LEFT, RIGHT, TOP, BOTTOM = 34, 248, 22, 142

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

    def y(self, value: float) -> float:
        return _y(value, self.low, self.high)


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
    step = _round_step((highest - lowest) or 1.0)
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    last = max(last, first + 1)
    low, high = first * step, last * step
    decimals = max(0, -math.floor(math.log10(step)))
    ticks = [(n * step, f"{n * step:.{decimals}f}".replace("-", "−")) for n in range(first, last + 1)]
    return Scale(low, high, tuple(Tick(_y(value, low, high), text) for value, text in ticks))


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
    return " ".join(f"{LEFT + (RIGHT - LEFT) * x:.1f},{scale.y(value):.1f}" for x, value in pairs)


def _y(value: float, low: float, high: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 1)


def _round_step(span: float) -> float:
    """Of 1, 2 and 5 times a power of ten the smallest that needs at most five steps."""
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if span <= 5 * factor * power * (1 + 1e-9))


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
