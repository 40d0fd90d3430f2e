"""The pages of a map of images and of a layer's patches, and how pages are rendered. In all text may be hostile."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from convlens.report.html import asset, csp_hash, environment, script_data
from convlens.types import Floats

_Facts = Sequence[tuple[str, str]]


def render_page(template: str, *styles: str, **values: Any) -> str:
    """A page of this folder's ``template``; ``styles`` are added to that of all pages."""
    style = Markup("").join(asset(name) for name in ("report.css", *styles))
    return environment().get_template(template).render(style=style, csp_hash=csp_hash, **values)


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
    return render_page(
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
    return render_page(
        "patches.html.j2",
        "patches.css",
        title=title,
        facts=facts,
        explanation=explanation,
        rows=rows,
        script=asset("patches.js"),
    )
