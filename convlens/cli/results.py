"""What commands write: the folder and table of ``explain``, ``query`` and ``demo``, and the figures of others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from rich.table import Table
from rich.text import Text

import convlens
from convlens import explain, image
from convlens.cli.console import out
from convlens.cli.outputs import require_replaceable
from convlens.errors import RequestError
from convlens.protocol.reply_folder import read_reply, write_reply
from convlens.report import GridRow, ReportRow, render, render_grid, write
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


@dataclass(frozen=True)
class ImageResult:
    """An image's name, what the model saw of it (PNG, empty where it was not kept), and the reply."""

    name: str
    view_png: bytes
    reply: Reply


def write_results(folder: Path, results: Sequence[ImageResult], *, model: str, single_file: bool = False) -> None:
    """Write all results: a folder for each image, the predictions as a table, and the report.

    With ``single_file`` the report holds its images, else it refers to those in the folders. The whole folder is
    replaced, or nothing is. Raises RequestError for a folder that holds anything else.
    """
    require_results_folder(folder)
    with replace_folder(folder) as draft:
        rows = [_write_result(draft, result) for result in results]
        write_csv(draft / PREDICTIONS, _PREDICTION_FIELDS, _prediction_rows(rows))
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
        names = {picture["folder"]: picture["name"] for picture in pictures}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{folder} holds no results ({error!r}); name a folder that `convlens explain` or `query` wrote"
        ) from error
    for place in names:
        if Path(place).name != place:
            raise RequestError(f"{folder / MANIFEST} names the folder {place!r}, which is not inside; write it anew")
    return [_read_result(folder / place, name) for place, name in names.items()]


def require_results_folder(folder: Path) -> None:
    """RequestError where ``write_results`` would not write there."""
    require_replaceable(folder, marker=MANIFEST, contents="results")


def write_figure(path: Path, figure_HWC: Bytes8) -> None:
    """The figure as PNG; folders on the way are made."""
    data = image.encode_png(figure_HWC, level=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_report(path: Path, results: Sequence[ImageResult], *, model: str) -> None:
    """The HTML page alone, with its images in it."""
    rows = [ReportRow(result.name, result.view_png, result.reply) for result in results]
    write(path, render(rows=rows, title=_TITLE, model=model, descriptions=_descriptions(), titles=_method_titles()))


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
    return GridRow(result.name, folder.name, result.reply, result.view_png, _VIEW, thumbnail, _THUMBNAIL)


def _read_result(folder: Path, name: str) -> ImageResult:
    view = folder / _VIEW
    return ImageResult(name, view.read_bytes() if view.exists() else b"", read_reply(folder))


def _unused(draft: Path, stem: str) -> Path:
    """A folder name of its own: images from different places may have the same name, or that of another file."""
    path, count = draft / stem, 1
    while path.exists() or path.name in (MANIFEST, REPORT, PREDICTIONS):
        count += 1
        path = draft / f"{stem}-{count}"
    return path


def _prediction_rows(rows: Sequence[GridRow]) -> Iterator[tuple[Cell, ...]]:
    for row in rows:
        for rank, guess in enumerate(row.reply.predictions, start=1):
            yield row.name, rank, guess.index, guess.label, guess.probability, guess.logit, row.folder


def _manifest(rows: Sequence[GridRow], model: str) -> dict[str, object]:
    return {
        "convlens": convlens.__version__,
        "model": model,
        "weights_sha256": rows[0].reply.weights_sha256,
        "pictures": [{"name": row.name, "folder": row.folder} for row in rows],
    }
