"""The page as text. jinja2's only home."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import jinja2
from markupsafe import Markup

from convlens.report.rows import ReportRow
from convlens.report.text import legible, milliseconds, percent, score
from convlens.report.view import Wording, sections

NO_TITLES: Mapping[str, str] = MappingProxyType({})


def render(
    *,
    rows: Sequence[ReportRow],
    title: str,
    model: str,
    descriptions: Mapping[str, tuple[str, str]],
    notes: Sequence[str] = (),
    titles: Mapping[str, str] = NO_TITLES,
    date: str = "",
) -> str:
    """A whole HTML page that needs nothing but itself: a section for each row, in the order given.

    ``descriptions`` holds for each method (what it shows, what it does not show), one sentence each; ``titles`` better
    names than the method's own. ``notes`` are printed under the heading, ``date`` as it stands. Text may be hostile.
    Raises ConvLensError for a method without a description, ImageError for bytes that are neither PNG nor JPEG.
    """
    template = environment().get_template("report.html.j2")
    return template.render(
        title=title,
        model=model,
        date=date,
        notes=notes,
        versions=_distinct(row.reply.model_version for row in rows),
        weights=_distinct(row.reply.weights_sha256 for row in rows),
        devices=_distinct(row.reply.device for row in rows),
        sections=sections(rows, Wording(descriptions, titles)),
        style=asset("report.css"),
        script=asset("report.js"),
        csp_hash=csp_hash,
    )


@cache
def environment() -> jinja2.Environment:
    """Escapes every value and cleans it before, so that no template line can forget to."""
    filters: dict[str, Callable[..., Any]] = {"percent": percent, "score": score, "milliseconds": milliseconds}
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=legible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(filters)
    return made


def csp_hash(inline: str) -> str:
    """The source expression that lets exactly this inline style or script run, and no other (CSP level 2)."""
    digest = hashlib.sha256(inline.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _read(name: str) -> str:
    return resources.files("convlens.report").joinpath(name).read_text(encoding="utf-8")


def asset(name: str) -> Markup:
    """A style or a script of ours, as it stands."""
    return Markup(_read(name))  # our own file, not a value


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))
