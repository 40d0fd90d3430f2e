"""The pages of a synthesis job, of a map of images, and of a layer's patches. In all of them text may be hostile."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from convlens.report.html import asset, csp_hash, environment, script_data
from convlens.types import Floats

_WIDTH, _HEIGHT = 720, 220  # of the curve, in SVG units
_MOST_POINTS = 600

_Facts = Sequence[tuple[str, str]]


def _render(template: str, style: str, **values: Any) -> str:
    """``style`` is added to that of all pages."""
    page = environment().get_template(template)
    return page.render(style=Markup(asset("report.css") + asset(style)), csp_hash=csp_hash, **values)


# ---- a synthesis job


@dataclass(frozen=True)
class LinkedImage:
    """An image by its address from the page, and its caption."""

    address: str
    caption: str


def render_job(
    *,
    title: str,
    facts: _Facts,
    figures: Sequence[LinkedImage],
    images: Sequence[LinkedImage],
    snapshots: Sequence[LinkedImage],
    objective: Sequence[float],
    video: str,
    results: _Facts,
    description: str,
) -> str:
    """Results, objective, intermediate images and configuration of a job; its images are files beside it. No script.

    ``objective`` holds one value per step.
    """
    finite = [value for value in objective if math.isfinite(value)]
    return _render(
        "job.html.j2",
        "job.css",
        title=title,
        facts=facts,
        figures=figures,
        images=images,
        snapshots=snapshots,
        steps=len(objective),
        line=polyline_points(objective),
        width=_WIDTH,
        height=_HEIGHT,
        lowest=f"{min(finite, default=0.0):.4g}",
        highest=f"{max(finite, default=0.0):.4g}",
        video=video,
        results=results,
        description=description,
    )


def polyline_points(values: Sequence[float]) -> str:
    """The points of an SVG polyline, left to right, the largest value on top; at most 600, evenly chosen.

    Empty for fewer than two finite values.
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    last, most = len(values) - 1, min(len(values), _MOST_POINTS)
    chosen = sorted({round(n * last / (most - 1)) for n in range(most)})
    span = (high - low) or 1.0
    return " ".join(
        f"{n * _WIDTH / last:.1f},{_HEIGHT - (values[n] - low) / span * _HEIGHT:.1f}"
        for n in chosen
        if math.isfinite(values[n])
    )


# ---- a map of images


@dataclass(frozen=True)
class ThumbnailSheet:
    """Squares of ``side`` pixels in rows of ``columns`` in one JPEG, for the points ``which``, in that order."""

    jpeg: bytes
    side: int
    columns: int
    which: Sequence[int]


def render_map(
    *,
    title: str,
    facts: _Facts,
    explanation: str,
    coordinates_N2: Floats,
    names: Sequence[str],
    labels: Sequence[str],
    thumbnails: ThumbnailSheet | None,
) -> str:
    """One point or thumbnail per image, to drag, zoom, search and filter by label; the second axis points upwards."""
    distinct = list(dict.fromkeys(labels))
    number = {label: n for n, label in enumerate(distinct)}
    data: dict[str, Any] = {
        "points": [[_rounded(x), _rounded(y)] for x, y in coordinates_N2.tolist()],
        "names": list(names),
        "labels": distinct,
        "label": [number[label] for label in labels],
    }
    if thumbnails is not None:
        # One sheet instead of thousands of images: a browser decodes it once.
        data["sheet"] = {
            "uri": f"data:image/jpeg;base64,{base64.b64encode(thumbnails.jpeg).decode('ascii')}",
            "side": thumbnails.side,
            "columns": thumbnails.columns,
            "which": list(thumbnails.which),
        }
    return _render(
        "map.html.j2",
        "map.css",
        title=title,
        facts=facts,
        explanation=explanation,
        data=script_data(data),
        script=asset("map.js"),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


# ---- a layer's patches


@dataclass(frozen=True)
class ChannelRow:
    """``sheet`` is an image's address from the page, with its size in pixels; ``strongest`` the largest activation."""

    channel: int
    strongest: float
    sheet: str
    width: int
    height: int
    image_ids: Sequence[str]


def render_patches(*, title: str, facts: _Facts, explanation: str, rows: Sequence[ChannelRow]) -> str:
    """One row of crops per channel, in files beside the page, to filter and sort."""
    # Sheets are loaded as they come into sight, so that a thousand channels open at once.
    return _render(
        "patches.html.j2",
        "patches.css",
        title=title,
        facts=facts,
        explanation=explanation,
        rows=rows,
        script=asset("patches.js"),
    )
