"""What commands write: the folder and table of ``explain``, ``query`` and ``demo``, and the figures of others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

import convlens
from convlens import explain, image
from convlens.cli.console import out
from convlens.cli.outputs import require_replaceable
from convlens.engine.rendering import heatmap_scale, overlay_scale
from convlens.errors import RequestError
from convlens.protocol.reply_folder import read_reply, write_reply
from convlens.report import GridRow, MapScales, ReportRow, TrueClass, render, render_grid, write
from convlens.types import Attribution, Bytes8, Explanation, Reply
from convlens.utils.csv_files import Cell, write_csv
from convlens.utils.files import replace_folder

MANIFEST = "manifest.json"
REPORT = "report.html"
PREDICTIONS = "predictions.csv"
_VIEW, _THUMBNAIL = "view.png", "thumbnail.jpg"
_THUMBNAIL_SIDE = 192  # pixels: about 8 kB each, sharp enough in the grid
_TITLE = "What the network looked at"
_PREDICTION_FIELDS = ("file", "rank", "index", "label", "probability", "logit", "folder")
_TRUTH_FIELDS = ("true_index", "true_label")


@dataclass(frozen=True)
class ImageResult:
    """An image's name, what the model saw of it (PNG, empty where it was not kept), the reply and the true class."""

    name: str
    view_png: bytes
    reply: Reply
    true_class: TrueClass | None = None


def write_results(folder: Path, results: Sequence[ImageResult], *, model: str, single_file: bool = False) -> None:
    """Write all results: a folder for each image, the predictions as a table, and the report.

    With ``single_file`` the report holds its images, else it refers to those in the folders. The whole folder is
    replaced, or nothing is. Raises RequestError for a folder that holds anything else.
    """
    require_results_folder(folder)
    with replace_folder(folder) as draft:
        rows = [_write_result(draft, result) for result in results]
        is_labelled = any(row.true_class for row in rows)
        fields = (*_PREDICTION_FIELDS, *_TRUTH_FIELDS) if is_labelled else _PREDICTION_FIELDS
        write_csv(draft / PREDICTIONS, fields, _prediction_rows(rows, with_truth=is_labelled))
        if single_file:
            write_report(draft / REPORT, results, model=model)
        else:
            _write_grid(draft / REPORT, rows, model=model)
        (draft / MANIFEST).write_text(json.dumps(_manifest(rows, model), indent=1), encoding="utf-8")


def read_results(folder: Path) -> list[ImageResult]:
    """The results that ``write_results`` wrote, in their order.

    Raises RequestError for a folder without a manifest, ConvLensError for an image's folder that is damaged.
    """
    try:
        pictures = json.loads((folder / MANIFEST).read_bytes())["pictures"]
        places = {picture["folder"]: (picture["name"], _true_class(picture)) for picture in pictures}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{folder} holds no results ({error!r}); name a folder that `convlens explain` or `query` wrote"
        ) from error
    for place in places:
        if Path(place).name != place:
            raise RequestError(f"{folder / MANIFEST} names the folder {place!r}, which is not inside; write it anew")
    return [_read_result(folder / place, name, true_class) for place, (name, true_class) in places.items()]


def require_results_folder(folder: Path) -> None:
    """RequestError where ``write_results`` would not write there."""
    require_replaceable(folder, marker=MANIFEST, contents="results")


def write_figure(path: Path, figure_HWC: Bytes8) -> None:
    """The figure as PNG; folders on the way are made."""
    data = image.encode_png(figure_HWC, level=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_report(path: Path, results: Sequence[ImageResult], *, model: str, notes: Sequence[str] = ()) -> None:
    """The HTML page alone, with its images in it, and the notes under its heading."""
    rows = [
        ReportRow(result.name, result.view_png, result.reply, result.true_class, _scales(result.reply))
        for result in results
    ]
    page = render(
        rows=rows, title=_TITLE, model=model, descriptions=_descriptions(), notes=notes, titles=_method_titles()
    )
    write(path, page)


def _write_grid(path: Path, rows: Sequence[GridRow], *, model: str) -> None:
    page = render_grid(
        rows=rows,
        title=_TITLE,
        model=model,
        descriptions=_descriptions(),
        titles=_method_titles(),
        downloads=(PREDICTIONS, MANIFEST),
    )
    write(path, page)


def _scales(reply: Reply) -> dict[str, MapScales]:
    """What the colours of each map stand for, by the explanations' ids; those over a whole image are not told."""
    scales = {}
    for item in reply.explanations:
        if not isinstance(item.result, Attribution):
            continue
        method, is_of_model_size = explain.get(item.method), _size_of(item.overlay_png) == _map_size(item.result)
        scales[item.id] = MapScales(
            overlay=overlay_scale(item.result, method) if is_of_model_size else None,
            heatmap=heatmap_scale(item.result, method) if item.heatmap_png else None,
        )
    return scales


def _size_of(png: bytes) -> tuple[int, int] | None:
    """(width, height); None for no bytes."""
    return image.decode(png).size if png else None


def _map_size(result: Attribution) -> tuple[int, int]:
    height, width = result.values_NCHW.shape[2:]
    return width, height


def _descriptions() -> dict[str, tuple[str, str]]:
    methods = map(explain.get, explain.available_methods())
    return {method.name: (method.shows, method.does_not_show) for method in methods}


def _method_titles() -> dict[str, str]:
    return {method.name: method.title for method in map(explain.get, explain.available_methods())}


def show_table(results: Sequence[ImageResult]) -> None:
    """A row an image: its best three classes, and each explanation's target (with its score) and time."""
    table = Table()
    for heading in ("image", "top 3", "explanation", "of"):
        table.add_column(heading, overflow="fold")
    table.add_column("ms", justify="right")
    for result in results:
        for cells in _table_rows(result):
            # Text, not str: a label or a file name is never read as markup.
            table.add_row(*map(Text, cells))
        table.add_section()
    out.print(table)


def _table_rows(result: ImageResult) -> Iterator[tuple[str, ...]]:
    """Classes on the left and explanations on the right, as many rows as the longer list."""
    form = ".1%" if result.reply.has_probabilities else ".2f"
    top = [f"{prediction.label} {prediction.probability:{form}}" for prediction in result.reply.predictions[:3]]
    right = [(item.id, _target(item), f"{item.milliseconds:.0f}") for item in result.reply.explanations]
    for n, (best, cells) in enumerate(zip_longest(top, right)):
        yield result.name if n == 0 else "", best or "", *(cells or ("", "", ""))


def _target(explanation: Explanation) -> str:
    if isinstance(explanation.result, Attribution):
        return f"{explanation.target_label} ({float(explanation.result.score_N[0]):.2f})"
    nearest = explanation.result.neighbours_NM[0][0]
    return f"{nearest.id} ({nearest.distance:.2f})"


# ---- the folder


def _write_result(draft: Path, result: ImageResult) -> GridRow:
    folder = _unused(draft, Path(result.name).stem)
    folder.mkdir()
    write_reply(folder, result.reply)
    thumbnail = b""
    if result.view_png:
        thumbnail = image.thumbnail(image.decode(result.view_png), side=_THUMBNAIL_SIDE)
        (folder / _VIEW).write_bytes(result.view_png)
        (folder / _THUMBNAIL).write_bytes(thumbnail)
    files = result.view_png, _VIEW, thumbnail, _THUMBNAIL
    return GridRow(result.name, folder.name, result.reply, *files, result.true_class, _scales(result.reply))


def _read_result(folder: Path, name: str, true_class: TrueClass | None) -> ImageResult:
    view = folder / _VIEW
    return ImageResult(name, view.read_bytes() if view.exists() else b"", read_reply(folder), true_class)


def _true_class(picture: Mapping[str, Any]) -> TrueClass | None:
    """The true class in a picture's entry of the manifest, where it has one."""
    return TrueClass(picture["true_index"], picture["true_label"]) if "true_index" in picture else None


def _unused(draft: Path, stem: str) -> Path:
    """A folder name of its own: images from different places may have the same name, or that of another file."""
    path, count = draft / stem, 1
    while path.exists() or path.name in (MANIFEST, REPORT, PREDICTIONS):
        count += 1
        path = draft / f"{stem}-{count}"
    return path


def _prediction_rows(rows: Sequence[GridRow], *, with_truth: bool) -> Iterator[tuple[Cell, ...]]:
    for row in rows:
        truth = (row.true_class.index, row.true_class.label) if row.true_class else ("", "")
        for rank, guess in enumerate(row.reply.predictions, start=1):
            cells = row.name, rank, guess.index, guess.label, guess.probability, guess.logit, row.folder
            yield (*cells, *truth) if with_truth else cells


def _manifest(rows: Sequence[GridRow], model: str) -> dict[str, object]:
    return {
        "convlens": convlens.__version__,
        "model": model,
        "weights_sha256": rows[0].reply.weights_sha256,
        "pictures": [{"name": row.name, "folder": row.folder, **_truth_entry(row)} for row in rows],
    }


def _truth_entry(row: GridRow) -> dict[str, object]:
    true_class = row.true_class
    return {"true_index": true_class.index, "true_label": true_class.label} if true_class else {}
