"""The page of explanations as one file: one section per image, one card per explanation.

``render`` makes the text and ``write`` the file; the views below hold the flat values that the template prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from markupsafe import Markup

from convlens.errors import ConvLensError
from convlens.report.explanation_views import (
    TOP,
    ColourBar,
    Fact,
    MapScales,
    Target,
    TrueClass,
    Wording,
    colour_bar_of,
    distinct,
    facts_of,
    target_of,
)
from convlens.report.html import EmbeddedImage, asset, csp_hash, embed_image, environment
from convlens.types import Explanation, Neighbourhood, Prediction, Reply, Result
from convlens.utils.files import atomic_write

_NO_TITLES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class ReportRow:
    """One image and its reply.

    ``name`` may be any text. ``view_png_or_jpeg`` is the encoded image after resize and crop, as the network's input;
    empty where none was kept. ``scales`` are by the explanations' ids.
    """

    name: str
    view_png_or_jpeg: bytes
    reply: Reply
    true_class: TrueClass | None = None
    scales: Mapping[str, MapScales] = field(default_factory=dict)


def render(
    *,
    rows: Sequence[ReportRow],
    title: str,
    model: str,
    descriptions: Mapping[str, tuple[str, str]],
    notes: Sequence[str] = (),
    titles: Mapping[str, str] = _NO_TITLES,
) -> str:
    """A whole HTML page that needs nothing but itself: a section for each row, in the order given.

    ``descriptions`` holds for each method (what it shows, what it does not show), one sentence each; ``titles`` better
    names than the method's own. ``notes`` are printed under the heading. Text may be hostile.
    Raises ConvLensError for a method without a description, ImageError for bytes that are neither PNG nor JPEG.
    """
    wording = Wording(descriptions, titles)
    # Anchors are numbers: a name could hold anything, and occur twice.
    sections = [_section(row, f"picture-{number}", wording) for number, row in enumerate(rows, start=1)]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            model=model,
            notes=notes,
            versions=distinct(row.reply.model_version for row in rows),
            weights=distinct(row.reply.weights_sha256 for row in rows),
            devices=distinct(row.reply.device for row in rows),
            sections=sections,
            style=asset("report.css"),
            script=Markup(asset("report.js") + asset("opacity.js")),
            csp_hash=csp_hash,
        )
    )


def write(path: Path, page: str) -> None:
    """Write a page: the whole file or nothing; an older file stays as it was until the new one is complete.

    The folder must exist. Raises ConvLensError where it cannot be written to.
    """
    try:
        with atomic_write(path, shared=True) as draft:
            draft.write_bytes(page.encode("utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConvLensError(
            f"cannot write the report {str(path)!r}: {reason}; give a file in an existing folder that may be written to"
        ) from error


# ---- views: all choosing happens here, none in the template


@dataclass(frozen=True)
class _Neighbour:
    id: str
    label: str
    distance: float
    thumbnail: EmbeddedImage | None


@dataclass(frozen=True)
class _Card:
    """One explanation. ``target`` is None for neighbours, which are about no class."""

    anchor: str
    id: str
    method: str
    title: str
    milliseconds: float
    target: Target | None
    overlay: EmbeddedImage | None
    heatmap: EmbeddedImage | None
    overlay_bar: ColourBar | None
    heatmap_bar: ColourBar | None
    neighbours: tuple[_Neighbour, ...]
    is_neighbourhood: bool
    shows: str
    does_not_show: str
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Section:
    """One image with its predictions and explanations."""

    anchor: str
    name: str
    image: EmbeddedImage | None
    predictions: tuple[Prediction, ...]
    true_class: TrueClass | None
    is_right: bool
    in_percent: bool
    cards: tuple[_Card, ...]
    warnings: tuple[str, ...]
    timing: tuple[tuple[str, float], ...]
    request_id: str


def _section(row: ReportRow, anchor: str, wording: Wording) -> _Section:
    reply = row.reply
    cards = [
        _card(explanation, row.scales.get(explanation.id, MapScales()), f"{anchor}-{number}", wording)
        for number, explanation in enumerate(reply.explanations, start=1)
    ]
    return _Section(
        anchor=anchor,
        name=row.name,
        image=embed_image(row.view_png_or_jpeg),
        predictions=reply.predictions[:TOP],
        true_class=row.true_class,
        is_right=row.true_class is not None and row.true_class.is_predicted(reply),
        in_percent=reply.has_probabilities,
        cards=tuple(cards),
        warnings=reply.warnings,
        timing=tuple(reply.timing_ms.items()),
        request_id=reply.request_id,
    )


def _card(explanation: Explanation, scales: MapScales, anchor: str, wording: Wording) -> _Card:
    title, shows, does_not_show = wording.of(explanation.method)
    result = explanation.result
    return _Card(
        anchor=anchor,
        id=explanation.id,
        method=explanation.method,
        title=title,
        milliseconds=explanation.milliseconds,
        target=target_of(explanation),
        overlay=embed_image(explanation.overlay_png),
        heatmap=embed_image(explanation.heatmap_png),
        overlay_bar=colour_bar_of(scales.overlay),
        heatmap_bar=colour_bar_of(scales.heatmap),
        neighbours=_neighbours(result),
        is_neighbourhood=isinstance(result, Neighbourhood),
        shows=shows,
        does_not_show=does_not_show,
        facts=facts_of(result),
        warnings=result.meta.warnings,
    )


def _neighbours(result: Result) -> tuple[_Neighbour, ...]:
    if not isinstance(result, Neighbourhood) or not result.neighbours_NM:
        return ()
    nearest_first = result.neighbours_NM[0]
    return tuple(_Neighbour(near.id, near.label, near.distance, embed_image(near.thumbnail)) for near in nearest_first)
