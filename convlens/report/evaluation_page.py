"""The page of an evaluation: the verdict in words, numbers with intervals, curves, sanity checks, telling pictures.

``write_evaluation_page`` writes it beside the evaluation's other files; the views below hold what the template prints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from markupsafe import Markup

from convlens.report.curves import Panel, Scale, draw_panel, shared_scale
from convlens.report.evaluation_table import Json, Naming, build_table, by_main_metric, known_metric, number
from convlens.report.explanation_page import write
from convlens.report.html import asset, csp_hash, environment

PAGE = "index.html"
_MOST_FAILURES = 100  # listed on the page; all are in evaluation.json
_NO_TITLES: Mapping[str, str] = MappingProxyType({})
_NO_MAPS: Mapping[str, Mapping[str, str]] = MappingProxyType({})


def write_evaluation_page(
    folder: Path,
    *,
    settings: Json,
    summary: Json,
    verdict: Json,
    records: Iterable[Json],
    maps: Mapping[str, Mapping[str, str]] = _NO_MAPS,
    titles: Mapping[str, str] = _NO_TITLES,
) -> Path:
    """Write ``folder/index.html``: the whole page or nothing; its path.

    ``maps[method][picture id]`` is the file of the map laid over the picture, by its path from ``folder``. ``titles``
    are better names than the methods' own. Text may be hostile. Raises ConvLensError where it cannot be written.
    """
    page = render_evaluation(
        settings=settings, summary=summary, verdict=verdict, records=records, maps=maps, titles=titles
    )
    write(folder / PAGE, page)
    return folder / PAGE


def render_evaluation(
    *,
    settings: Json,
    summary: Json,
    verdict: Json,
    records: Iterable[Json],
    maps: Mapping[str, Mapping[str, str]] = _NO_MAPS,
    titles: Mapping[str, str] = _NO_TITLES,
) -> str:
    """The page's text; arguments as for ``write_evaluation_page``."""
    naming = Naming(titles)
    order = by_main_metric(summary)
    return (
        environment()
        .get_template("evaluation.html.j2")
        .render(
            settings=settings,
            pictures=summary["pictures"],
            headline=verdict["headline"],
            notes=verdict["notes"],
            recommended=[naming.of(name) for name in verdict["recommended"]],
            table=build_table(summary, verdict["recommended"], order, naming),
            verdicts=_verdicts(verdict, order, naming),
            chart_sets=list(_chart_sets(summary, order, naming)),
            strips=list(_strips(settings, summary, order, naming)),
            galleries=_galleries(summary, order, naming, {record["id"]: record for record in records}, maps),
            main_title=known_metric(summary["main_metric"]).title,
            facts=list(_protocol(settings)),
            options=list(_options(settings, naming)),
            failures=summary["failures"][:_MOST_FAILURES],
            more_failures=max(0, len(summary["failures"]) - _MOST_FAILURES),
            style=Markup(asset("report.css") + asset("evaluation.css")),
            script=Markup(asset("report.js") + asset("evaluation.js")),
            csp_hash=csp_hash,
        )
    )


# ---- words


@dataclass(frozen=True)
class _MethodVerdict:
    title: str
    sentence: str
    is_recommended: bool


def _verdicts(verdict: Json, order: Sequence[str], naming: Naming) -> list[_MethodVerdict]:
    sentences = verdict["sentences"]
    names = dict.fromkeys([*(name for name in order if name in sentences), *sentences])
    return [_MethodVerdict(naming.of(name), sentences[name], name in verdict["recommended"]) for name in names]


# ---- curves


@dataclass(frozen=True)
class _ChartSet:
    """Small multiples with the same axes, one a method. ``first`` and ``second`` say what the two lines are."""

    title: str
    first: str
    second: str
    across: str
    up: str
    reference: str
    scale: Scale
    panels: tuple[Panel, ...]
    is_folded: bool


_KINDS = (
    (
        "Insertion and deletion",
        (("insertion", "probability"), ("deletion", "probability")),
        ("insertion: the most relevant pixels are shown first", "deletion: the most relevant pixels are removed first"),
        ("pixels shown or removed", "mean probability"),
        False,
    ),
    (
        "Insertion and deletion, on the logit",
        (("insertion", "logit"), ("deletion", "logit")),
        ("insertion: the most relevant pixels are shown first", "deletion: the most relevant pixels are removed first"),
        ("pixels shown or removed", "mean logit"),
        True,
    ),
    (
        "ROAD",
        (("road", "lerf"), ("road", "morf")),
        ("the least relevant pixels are imputed first", "the most relevant pixels are imputed first"),
        ("pixels imputed", "mean probability"),
        False,
    ),
)


def _chart_sets(summary: Json, order: Sequence[str], naming: Naming) -> Iterator[_ChartSet]:
    baselines = [name for name in order if name in summary["baselines"]]
    # Methods first: a baseline is what they are compared with, and its lines are drawn behind theirs.
    names = [*(name for name in order if name not in baselines), *baselines]
    for title, paths, (first, second), (across, up), is_folded in _KINDS:
        pairs = {name: [_curve(summary["methods"][name], *path) for path in paths] for name in names}
        drawn = {name: pair for name, pair in pairs.items() if any(pair)}
        if not drawn:
            continue
        scale = shared_scale([curve for pair in drawn.values() for curve in pair if curve])
        reference = next((name for name in baselines if name in drawn), "")
        behind = drawn.get(reference, [])
        panels = tuple(
            draw_panel(naming.of(name), pair, [] if name == reference else behind, scale)
            for name, pair in drawn.items()
        )
        shown = naming.of(reference) if reference else ""
        yield _ChartSet(title, first, second, across, up, shown, scale, panels, is_folded)


def _curve(method: Json, kind: str, part: str) -> Json | None:
    """The curve with its ``fraction``; None where it was not measured."""
    curves = (method.get("curves") or {}).get(kind) or {}
    if not curves.get(part) or not curves[part].get("mean"):
        return None
    return {"fraction": curves["fraction"], **curves[part]}


# ---- sanity checks


@dataclass(frozen=True)
class _StripCell:
    """``width`` of its bar, 0..1."""

    text: str
    width: float


@dataclass(frozen=True)
class _Strip:
    title: str
    stages: tuple[str, ...]
    rows: tuple[tuple[str, bool, tuple[_StripCell, ...]], ...]
    is_folded: bool


_STRIPS = (
    ("cascading", "spearman", "Rank correlation, from the top layer down", False),
    ("cascading", "ssim", "Structural similarity (SSIM), from the top layer down", True),
    ("independent", "spearman", "Rank correlation, one stage at a time", True),
    ("independent", "ssim", "Structural similarity (SSIM), one stage at a time", True),
)


def _strips(settings: Json, summary: Json, order: Sequence[str], naming: Naming) -> Iterator[_Strip]:
    for kind, measure, title, is_folded in _STRIPS:
        rows = []
        for name in order:
            values = (((summary["methods"][name].get("randomisation") or {}).get(kind) or {}).get(measure) or {}).get(
                "mean"
            )
            if values:
                cells = tuple(_strip_cell(value) for value in values)
                rows.append((naming.of(name), name in summary["baselines"], cells))
        if rows:
            count = max(len(cells) for _, _, cells in rows)
            named = [*settings.get("stages", ())][:count]
            stages = (*named, *(f"stage {n + 1}" for n in range(len(named), count)))
            yield _Strip(title, stages, tuple(rows), is_folded)


def _strip_cell(value: float | None) -> _StripCell:
    if value is None or not math.isfinite(value):
        return _StripCell("no map", 0.0)
    return _StripCell(number(value), min(max(value, 0.0), 1.0))


# ---- pictures


@dataclass(frozen=True)
class _Example:
    id: str
    label: str
    value: str
    address: str


@dataclass(frozen=True)
class _Gallery:
    title: str
    best: tuple[_Example, ...]
    worst: tuple[_Example, ...]


def _galleries(
    summary: Json,
    order: Sequence[str],
    naming: Naming,
    records: Mapping[str, Json],
    maps: Mapping[str, Mapping[str, str]],
) -> list[_Gallery]:
    galleries = []
    for name in order:
        method = summary["methods"][name]

        def examples(ids: Iterable[str], name: str = name) -> tuple[_Example, ...]:
            addresses = maps.get(name, {})
            return tuple(
                _example(records.get(each, {"id": each}), name, summary["main_metric"], addresses.get(each, ""))
                for each in ids
            )

        if name not in summary["baselines"] and (method.get("best") or method.get("worst")):
            galleries.append(_Gallery(naming.of(name), examples(method["best"]), examples(method["worst"])))
    return galleries


def _example(record: Json, method: str, main_metric: str, file: str) -> _Example:
    value = record.get("methods", {}).get(method, {}).get("values", {}).get(main_metric)
    # A name may hold "#" or "?", which would end the address's path.
    return _Example(record["id"], record.get("label", ""), "" if value is None else number(value), quote(file))


# ---- protocol

_SAID = {
    "model": "model",
    "weights_sha256": "weights sha256",
    "runtime": "runtime",
    "pictures": "pictures",
    "list_sha256": "list of pictures, sha256",
    "metrics": "metrics",
    "steps": "steps of a curve",
    "insertion_substrate": "insertion starts from",
    "deletion_substrate": "deletion ends in",
    "road_fractions": "ROAD: shares of pixels imputed",
    "costly_pictures": "pictures of the costly metrics",
    "stages": "randomised stages, from the top",
    "baselines": "baselines",
    "seed": "seed",
}


def _protocol(settings: Json) -> Iterator[tuple[str, str]]:
    """Every setting, those that are known under their names in words; the methods stand in a list of their own."""
    known = [key for key in _SAID if key in settings]
    for key in [*known, *(key for key in settings if key not in (*_SAID, "methods", "version"))]:
        yield _SAID.get(key, key.replace("_", " ")), _plain(settings[key])


def _options(settings: Json, naming: Naming) -> Iterator[tuple[str, str]]:
    for name, options in settings.get("methods", {}).items():
        words = ", ".join(f"{option}={_plain(value)}" for option, value in options.items())
        yield naming.of(name), words or "its defaults"


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
