"""The page of a folder of explanations: a grid of thumbnails, and each picture's details on demand.

Its images are files beside it, loaded as they come into sight. The details are JSON that the page's script draws:
as HTML, 500 pictures of four methods would be several times the size.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from convlens.protocol.reply_folder import ImageKind, array_file, image_file, neighbour_file
from convlens.report.explanation_views import (
    TOP,
    ColourBar,
    MapScales,
    TrueClass,
    Wording,
    colour_bar_of,
    distinct,
    facts_of,
    target_of,
)
from convlens.report.html import (
    LinkedFile,
    asset,
    chance,
    csp_hash,
    environment,
    legible,
    link_image,
    milliseconds,
    score,
    script_data,
)
from convlens.types import Attribution, Explanation, Neighbour, Prediction, Reply

_IMAGE_KINDS: tuple[ImageKind, ...] = ("overlay", "heatmap")


@dataclass(frozen=True)
class GridRow:
    """A picture and its reply; the files of both lie in ``folder``, a name beside the page.

    ``view`` and ``thumbnail`` are the bytes of the files ``view_file`` and ``thumbnail_file``, both empty where no
    image was kept. The names of the others are those of ``reply_folder``. ``scales`` are by the explanations' ids.
    """

    name: str
    folder: str
    reply: Reply
    view: bytes
    view_file: str
    thumbnail: bytes
    thumbnail_file: str
    true_class: TrueClass | None = None
    scales: Mapping[str, MapScales] = field(default_factory=dict)


def render_grid(
    *,
    rows: Sequence[GridRow],
    title: str,
    model: str,
    descriptions: Mapping[str, tuple[str, str]],
    titles: Mapping[str, str],
    downloads: Sequence[str] = (),
) -> str:
    """The HTML page that lies beside the folders of the rows; it shows them in the order given.

    ``descriptions`` and ``titles`` are those of ``explanation_page.render``, ``downloads`` the names of other files
    beside the page. Text may be hostile. Raises ConvLensError for a method without a description, ImageError for bytes
    that are neither PNG nor JPEG.
    """
    replies = [row.reply for row in rows]
    wording = Wording(descriptions, titles)
    style = Markup(asset("report.css") + asset("grid.css"))
    return (
        environment()
        .get_template("grid.html.j2")
        .render(
            title=title,
            model=model,
            versions=distinct(reply.model_version for reply in replies),
            weights=distinct(reply.weights_sha256 for reply in replies),
            devices=distinct(reply.device for reply in replies),
            downloads=[(name, quote(name)) for name in downloads],
            tiles=list(_tiles(rows)),
            classes=_predicted_classes(replies),
            in_percent=all(reply.has_probabilities for reply in replies),
            maps=_drawn_maps(replies, wording),
            answers=_answers(rows),
            data=script_data(_legible(_data(rows, wording))),
            style=style,
            script=asset("grid.js"),
            csp_hash=csp_hash,
        )
    )


# ---- the grid


@dataclass(frozen=True)
class _Tile:
    """``address`` is the picture's view, which also opens where no script runs; empty where none was kept.

    ``misses`` is the true class where the prediction is another one.
    """

    name: str
    address: str
    image: LinkedFile | None
    prediction: Prediction | None
    in_percent: bool
    warns: bool
    misses: str


def _tiles(rows: Sequence[GridRow]) -> Iterator[_Tile]:
    """A tile a row; marked where the row has a warning that not every row has."""
    warnings = [_all_warnings(row.reply) for row in rows]
    common = set.intersection(*warnings) if len(rows) > 1 else set()
    for row, its_own in zip(rows, warnings, strict=True):
        reply = row.reply
        yield _Tile(
            name=row.name,
            address=_address(row.folder, row.view_file) if row.view else "",
            image=link_image(_address(row.folder, row.thumbnail_file), row.thumbnail),
            prediction=reply.predictions[0] if reply.predictions else None,
            in_percent=reply.has_probabilities,
            warns=bool(its_own - common),
            misses=row.true_class.label if row.true_class and not row.true_class.is_predicted(reply) else "",
        )


def _all_warnings(reply: Reply) -> set[str]:
    return {*reply.warnings, *(line for item in reply.explanations for line in item.result.meta.warnings)}


def _predicted_classes(replies: Iterable[Reply]) -> list[tuple[int, str, int]]:
    """(index, label, number of pictures) of each class that comes first for some picture, by label."""
    first = Counter((reply.predictions[0].index, reply.predictions[0].label) for reply in replies if reply.predictions)
    return sorted(
        ((index, label, count) for (index, label), count in first.items()), key=lambda each: (each[1].lower(), each[0])
    )


def _answers(rows: Sequence[GridRow]) -> dict[str, int]:
    """How many predictions are right and wrong, by the true classes; nothing where none is known."""
    right = [row.true_class.is_predicted(row.reply) for row in rows if row.true_class is not None]
    return {"right": sum(right), "wrong": len(right) - sum(right)} if right else {}


def _drawn_maps(replies: Iterable[Reply], wording: Wording) -> dict[str, str]:
    """The ids of explanations that have an overlay for some picture, with what the menu calls them."""
    drawn = {item.id: item.method for reply in replies for item in reply.explanations if item.overlay_png}
    names = {each: wording.of(method)[0] for each, method in drawn.items()}
    return {each: name if each == drawn[each] else f"{name} ({each})" for each, name in names.items()}


def _address(folder: str, file: str) -> str:
    # By bytes: a name that is not UTF-8 must still lead to its file.
    return f"{quote(os.fsencode(folder))}/{quote(file)}"


# ---- the details


class _Numbered:
    """Values in the order of their first appearance: one number stands for each, however often it occurs."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Any, ...], int] = {}

    def number(self, value: tuple[Any, ...]) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    def values(self) -> list[tuple[Any, ...]]:
        return list(self._numbers)


def _data(rows: Sequence[GridRow], wording: Wording) -> dict[str, Any]:
    facts = _Numbered()
    methods = {item.method for row in rows for item in row.reply.explanations}
    return {
        "pictures": [_picture(row, facts) for row in rows],
        "methods": {method: wording.of(method) for method in sorted(methods)},
        "facts": facts.values(),
    }


def _picture(row: GridRow, facts: _Numbered) -> dict[str, Any]:
    reply = row.reply
    guesses = reply.predictions[:TOP]
    return {
        "name": row.name,
        "folder": quote(os.fsencode(row.folder)),
        "view": _file(row.view_file, row.view),
        "predictions": [
            [each.index, each.label, each.probability, chance(each.probability, reply.has_probabilities)]
            for each in guesses
        ],
        "inPercent": reply.has_probabilities,
        "warnings": list(reply.warnings),
        "request": reply.request_id,
        "timing": [[stage, milliseconds(taken)] for stage, taken in reply.timing_ms.items()],
        "truth": _truth(row),
        "cards": [_card(item, facts, row.scales.get(item.id, MapScales())) for item in reply.explanations],
    }


def _truth(row: GridRow) -> list[Any] | None:
    """Label, whether it is the prediction, and whether it is listed; None where the true class is not known."""
    truth = row.true_class
    if truth is None:
        return None
    is_listed = any(guess.index == truth.index for guess in row.reply.predictions[:TOP])
    return [truth.label, truth.is_predicted(row.reply), is_listed]


def _card(explanation: Explanation, facts: _Numbered, scales: MapScales) -> dict[str, Any]:
    result, target = explanation.result, target_of(explanation)
    bars: dict[ImageKind, ColourBar | None] = {
        "overlay": colour_bar_of(scales.overlay),
        "heatmap": colour_bar_of(scales.heatmap),
    }
    images: dict[ImageKind, bytes] = {"overlay": explanation.overlay_png, "heatmap": explanation.heatmap_png}
    card: dict[str, Any] = {
        "id": explanation.id,
        "method": explanation.method,
        "time": milliseconds(explanation.milliseconds),
        "images": {kind: _file(image_file(explanation.id, kind), images[kind]) for kind in _IMAGE_KINDS},
        "bars": {kind: bar for kind, bar in bars.items() if bar},
        "facts": [facts.number(fact) for fact in facts_of(result)],
        "warnings": list(result.meta.warnings),
    }
    if target is not None:
        card["target"] = [target.label, target.kind, score(target.score, target.kind)]
    if isinstance(result, Attribution):
        card["arrays"] = quote(array_file(explanation.id))
    else:
        card["neighbours"] = list(_neighbours(explanation.id, result.neighbours_NM[0] if result.neighbours_NM else ()))
    return card


def _neighbours(explanation_id: str, nearest: Sequence[Neighbour]) -> Iterator[list[Any]]:
    for rank, near in enumerate(nearest, start=1):
        yield [near.label, f"{near.distance:.3f}", near.id, _file(neighbour_file(explanation_id, rank), near.thumbnail)]


def _file(name: str, encoded: bytes) -> list[Any] | None:
    """File name (as in an address), width and height; None for no bytes."""
    linked = link_image(quote(name), encoded)
    return [linked.address, linked.width, linked.height] if linked else None


def _legible(value: Any) -> Any:
    """The same JSON with all text in it made legible, keys too."""
    if isinstance(value, Mapping):
        return {legible(key): _legible(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_legible(each) for each in value]
    return legible(value)
