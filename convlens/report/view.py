"""Frozen results -> the flat values that the template prints. All choosing happens here, none in the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convlens.errors import ConvLensError
from convlens.report.facts import Fact, facts_of
from convlens.report.pictures import Picture, embed
from convlens.report.rows import ReportRow
from convlens.report.text import title_of
from convlens.types import Explanation, Neighbourhood, Prediction, Result

TOP = 5


@dataclass(frozen=True)
class TargetView:
    """The class a map is about, and its score on the unchanged picture."""

    label: str
    score: float
    kind: str


@dataclass(frozen=True)
class NeighbourView:
    id: str
    label: str
    distance: float
    thumbnail: Picture | None


@dataclass(frozen=True)
class CardView:
    """One explanation. ``target`` is None for neighbours, which are about no class."""

    anchor: str
    id: str
    method: str
    title: str
    milliseconds: float
    target: TargetView | None
    overlay: Picture | None
    heatmap: Picture | None
    neighbours: tuple[NeighbourView, ...]
    is_neighbourhood: bool
    shows: str
    does_not_show: str
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class SectionView:
    """One picture with its answers."""

    anchor: str
    name: str
    picture: Picture | None
    predictions: tuple[Prediction, ...]
    cards: tuple[CardView, ...]
    warnings: tuple[str, ...]
    timing: tuple[tuple[str, float], ...]
    request_id: str


@dataclass(frozen=True)
class Wording:
    """What each method is called, shows and does not show, by method name."""

    descriptions: Mapping[str, tuple[str, str]]
    titles: Mapping[str, str]

    def of(self, method: str) -> tuple[str, str, str]:
        """Title, shows, does not show. Raises ConvLensError for a method nobody described."""
        if method not in self.descriptions:
            known = ", ".join(sorted(self.descriptions)) or "none"
            raise ConvLensError(f"the report has no description of method {method!r}; described are: {known}")
        return (self.titles.get(method) or title_of(method), *self.descriptions[method])


def sections(rows: Sequence[ReportRow], wording: Wording) -> tuple[SectionView, ...]:
    """A section for each row, in order, with anchors that no name can spoil."""
    return tuple(_section(row, f"picture-{number}", wording) for number, row in enumerate(rows, start=1))


def _section(row: ReportRow, anchor: str, wording: Wording) -> SectionView:
    reply = row.reply
    cards = enumerate(reply.explanations, start=1)
    return SectionView(
        anchor=anchor,
        name=row.name,
        picture=embed(row.picture_png_or_jpeg),
        predictions=reply.predictions[:TOP],
        cards=tuple(_card(explanation, f"{anchor}-{number}", wording) for number, explanation in cards),
        warnings=reply.warnings,
        timing=tuple(reply.timing_ms.items()),
        request_id=reply.request_id,
    )


def _card(explanation: Explanation, anchor: str, wording: Wording) -> CardView:
    title, shows, does_not_show = wording.of(explanation.method)
    result = explanation.result
    return CardView(
        anchor=anchor,
        id=explanation.id,
        method=explanation.method,
        title=title,
        milliseconds=explanation.milliseconds,
        target=_target(explanation),
        overlay=embed(explanation.overlay_png),
        heatmap=embed(explanation.heatmap_png),
        neighbours=_neighbours(result),
        is_neighbourhood=isinstance(result, Neighbourhood),
        shows=shows,
        does_not_show=does_not_show,
        facts=facts_of(result),
        warnings=result.meta.warnings,
    )


def _target(explanation: Explanation) -> TargetView | None:
    result = explanation.result
    if isinstance(result, Neighbourhood):
        return None
    return TargetView(explanation.target_label, float(result.score_N[0]), result.meta.target_kind)


def _neighbours(result: Result) -> tuple[NeighbourView, ...]:
    if not isinstance(result, Neighbourhood) or not result.neighbours_NM:
        return ()
    nearest_first = result.neighbours_NM[0]
    return tuple(NeighbourView(near.id, near.label, near.distance, embed(near.thumbnail)) for near in nearest_first)
