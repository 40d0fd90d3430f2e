"""A map of pictures as one self-contained page: drag, zoom, hover, pick labels."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from convlens.report.page import asset, csp_hash, environment
from convlens.types import Floats

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
