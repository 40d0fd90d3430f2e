"""A page of a layer's patches: one row of crops a channel, in files beside the page, to be filtered and sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from convlens.report.page import asset, csp_hash, environment


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
