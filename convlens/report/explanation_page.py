"""What the caller hands in, one value a picture.

How a result came about, as pairs to be read: the options that took effect, then its meta.

Frozen results -> the flat values that the template prints. All choosing happens here, none in the template.

The page as text. jinja2's only home.

The page as a file.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from convlens.errors import ConvLensError
from convlens.report.html import Picture, embed, legible, milliseconds, percent, score, title_of
from convlens.types import Attribution, Explanation, Meta, Neighbourhood, Prediction, Reply, Result


@dataclass(frozen=True)
class ReportRow:
    """One picture and everything said about it.

    ``name`` may be any text. ``picture_png_or_jpeg`` is the encoded picture after resize and crop, as the model saw
    it; empty where none was kept.
    """

    name: str
    picture_png_or_jpeg: bytes
    reply: Reply


class Fact(NamedTuple):
    name: str
    value: str
    is_option: bool = False


def facts_of(result: Result) -> tuple[Fact, ...]:
    """Options first, in the order they were given; then meta, without what does not apply (seed, layer, ReLUs)."""
    return (*_options(result.options), *_target_facts(result), *_meta(result.meta))


def _options(options: Mapping[str, Any]) -> Iterator[Fact]:
    for name, value in options.items():
        yield Fact(name, str(value), is_option=True)


def _target_facts(result: Result) -> Iterator[Fact]:
    if isinstance(result, Attribution):
        if result.neurons_N:
            yield Fact("neuron", str(result.neurons_N[0]))
        else:
            yield Fact("target class", str(int(result.target_N[0])))
        yield Fact("target score", f"{result.score_N[0]!s} ({result.meta.target_kind})")
        yield Fact("map size", " × ".join(str(length) for length in result.values_NCHW.shape[1:]))


def _meta(meta: Meta) -> Iterator[Fact]:
    yield Fact("runtime", f"{meta.runtime} on {meta.device}, {meta.dtype}")
    yield Fact("input space", meta.input_space)
    if meta.layer is not None:
        yield Fact("layer", meta.layer)
    if meta.seed is not None:
        yield Fact("seed", str(meta.seed))
    if meta.relu_calls_seen:
        yield Fact("ReLU calls", f"{meta.relu_calls_seen} seen, {meta.relu_calls_ruled} ruled")
    yield Fact(
        "passes, whole batch", f"{meta.forwards} forward, {meta.backwards} backward in {meta.seconds:.3g}\u00a0s"
    )
    yield Fact("weights sha256", meta.weights_sha256)


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


def write(
    path: Path,
    *,
    rows: Sequence[ReportRow],
    title: str,
    model: str,
    descriptions: Mapping[str, tuple[str, str]],
    notes: Sequence[str] = (),
    titles: Mapping[str, str] = NO_TITLES,
    date: str = "",
) -> None:
    """Write what ``render`` makes of the same arguments: the whole page or nothing.

    An older file at ``path`` stays as it was until the new one is complete. The folder must exist. Raises ConvLensError
    when it cannot be written to, beside what ``render`` raises.
    """
    page = render(rows=rows, title=title, model=model, descriptions=descriptions, notes=notes, titles=titles, date=date)
    try:
        _replace(path, page.encode("utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConvLensError(
            f"cannot write the report {str(path)!r}: {reason}; give a file in an existing folder that may be written to"
        ) from error


def _replace(path: Path, content: bytes) -> None:
    beside = path.parent / f".report-{secrets.token_hex(6)}.part"
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
