"""The page of a lecture: chapter by chapter its figures, each with what made it. Images are files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convlens.report.pages import render_page


@dataclass(frozen=True)
class ShownFigure:
    """A figure by its address from the page, with its size in pixels; ``numbers`` is the address of its JSON.

    ``commands`` are as one types them, ``pages`` (title, address) of pages with more.
    """

    name: str
    title: str
    address: str
    numbers: str
    width: int
    height: int
    shows: str
    does_not_show: str
    facts: Sequence[tuple[str, str]]
    commands: Sequence[str]
    pages: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ChapterPart:
    """A chapter with the figures that are there; ``left_out`` holds (title, reason) of those that cannot be made."""

    name: str
    title: str
    figures: Sequence[ShownFigure]
    left_out: Sequence[tuple[str, str]] = ()


def render_lecture(
    *, model: str, weights_sha256: str, version: str, is_quick: bool, chapters: Sequence[ChapterPart]
) -> str:
    """All chapters in their order; those with nothing yet are named at the end."""
    present = [chapter for chapter in chapters if chapter.figures or chapter.left_out]
    return render_page(
        "lecture.html.j2",
        "lecture.css",
        model=model,
        weights_sha256=weights_sha256,
        version=version,
        is_quick=is_quick,
        chapters=present,
        missing=[chapter for chapter in chapters if chapter not in present],
        count=sum(len(chapter.figures) for chapter in present),
    )
