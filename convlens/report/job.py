"""The page of a synthesis job: what came out, how the objective went, how the picture grew, how it was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from convlens.report.page import asset, csp_hash, environment

_WIDTH, _HEIGHT, _MOST = 720, 220, 600


@dataclass(frozen=True)
class Shown:
    """A picture by its address from the page, and its caption."""

    address: str
    caption: str


@dataclass(frozen=True)
class Curve:
    """A number a step."""

    name: str
    values: Sequence[float]


def render_job(
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    figures: Sequence[Shown],
    pictures: Sequence[Shown],
    snapshots: Sequence[Shown],
    curve: Curve,
    video: str,
    found: Sequence[tuple[str, str]],
    description: str,
) -> str:
    """A whole page; its pictures are files beside it. Text may be hostile. No script."""
    return (
        environment()
        .get_template("job.html.j2")
        .render(
            title=title,
            facts=facts,
            figures=figures,
            pictures=pictures,
            snapshots=snapshots,
            curve=curve,
            line=drawn_line(curve.values),
            width=_WIDTH,
            height=_HEIGHT,
            lowest=_number(min(_finite(curve.values), default=0.0)),
            highest=_number(max(_finite(curve.values), default=0.0)),
            video=video,
            found=found,
            description=description,
            style=Markup(asset("report.css") + asset("job.css")),
            csp_hash=csp_hash,
        )
    )


def drawn_line(values: Sequence[float]) -> str:
    """The points of an SVG polyline, left to right, the largest value on top; at most 600 of them, evenly chosen."""
    finite = _finite(values)
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    count = len(values)
    chosen = sorted({round(n * (count - 1) / (min(count, _MOST) - 1)) for n in range(min(count, _MOST))})
    span = (high - low) or 1.0
    return " ".join(
        f"{n * _WIDTH / (count - 1):.1f},{_HEIGHT - (values[n] - low) / span * _HEIGHT:.1f}"
        for n in chosen
        if math.isfinite(values[n])
    )


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _number(value: float) -> str:
    return f"{value:.4g}"
