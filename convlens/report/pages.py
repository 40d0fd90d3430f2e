"""The page of a synthesis job: what came out, how the objective went, how the picture grew, how it was asked for.

A map of pictures as one self-contained page: drag, zoom, hover, pick labels.

A page of a layer's patches: one row of crops a channel, in files beside the page, to be filtered and sorted.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from convlens.report.explanation_page import asset, csp_hash, environment
from convlens.types import Floats

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


_UNSAFE = re.compile("[<>&\u2028\u2029]")


@dataclass(frozen=True)
class Thumbnails:
    """Squares of ``side`` pixels in rows of ``columns`` in one JPEG, for the points ``which``, in that order."""

    jpeg: bytes
    side: int
    columns: int
    which: Sequence[int]


def render_map(
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    explained: str,
    coordinates_N2: Floats,
    names: Sequence[str],
    labels: Sequence[str],
    thumbnails: Thumbnails | None,
) -> str:
    """The page as text. Names and labels may be hostile: they are data for the script, never markup.

    Points lie at ``coordinates_N2``, the second axis upwards.
    """
    distinct = list(dict.fromkeys(labels))
    number = {label: n for n, label in enumerate(distinct)}
    data: dict[str, Any] = {
        "points": [[_rounded(x), _rounded(y)] for x, y in coordinates_N2.tolist()],
        "names": list(names),
        "labels": distinct,
        "label": [number[label] for label in labels],
    }
    if thumbnails is not None:
        uri = f"data:image/jpeg;base64,{base64.b64encode(thumbnails.jpeg).decode('ascii')}"
        data["sheet"] = {
            "uri": uri,
            "side": thumbnails.side,
            "columns": thumbnails.columns,
            "which": list(thumbnails.which),
        }
    return (
        environment()
        .get_template("map.html.j2")
        .render(
            title=title,
            facts=facts,
            explained=explained,
            data=as_script_data(data),
            style=Markup(asset("report.css") + asset("map.css")),
            script=asset("map.js"),
            csp_hash=csp_hash,
        )
    )


def as_script_data(value: object) -> Markup:
    """JSON that no HTML parser can take for the end of the element it stands in."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


@dataclass(frozen=True)
class ChannelRow:
    """``sheet`` is the picture's address from the page, of so many pixels; ``strongest`` its largest value."""

    channel: int
    strongest: float
    sheet: str
    width: int
    height: int
    pictures: Sequence[str]


def render_patches(*, title: str, facts: Sequence[tuple[str, str]], explained: str, rows: Sequence[ChannelRow]) -> str:
    """A whole page; its pictures are loaded as they come into sight, so that a thousand channels open at once.

    Text may be hostile. The page runs one script of its own, and loads nothing but the sheets.
    """
    style = Markup(asset("report.css") + asset("patches.css"))
    template = environment().get_template("patches.html.j2")
    return template.render(
        title=title,
        facts=facts,
        explained=explained,
        rows=rows,
        style=style,
        script=asset("patches.js"),
        csp_hash=csp_hash,
    )
