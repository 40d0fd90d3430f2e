"""What commands write: the folder and table of ``explain``, ``query`` and ``demo``, and the figures of others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

import convlens
from convlens import explain, image
from convlens.cli.console import out
from convlens.errors import RequestError
from convlens.protocol.params import Params
from convlens.protocol.responses import dumps, to_json
from convlens.report import ReportRow, render, write
from convlens.types import Attribution, Bytes8, Explanation, Reply
from convlens.utils.files import replace_folder

MANIFEST = "manifest.json"
REPORT = "report.html"


@dataclass(frozen=True)
class ImageResult:
    """An image's name, what the model saw of it (PNG), the reply, and the parameters of the request."""

    name: str
    view_png: bytes
    reply: Reply
    params: Params


def write_results(folder: Path, results: Sequence[ImageResult], *, model: str) -> None:
    """Write all results. The folder is replace_folder as a whole, or not at all.

    Raises RequestError for a folder that holds anything else.
    """
    require_replaceable(folder, marker=MANIFEST, contents="results")
    with replace_folder(folder) as draft:
        names = [_write_result(draft, result) for result in results]
        write_report(draft / REPORT, results, model=model)
        (draft / MANIFEST).write_text(json.dumps(_manifest(results, names, model), indent=1), encoding="utf-8")


def require_replaceable(folder: Path, *, marker: str, contents: str) -> None:
    """RequestError unless the folder is missing, empty, or holds the file that marks results of the same command."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / marker).is_file())):
        raise RequestError(f"{folder} holds other things than {contents}; choose a new folder or empty it")


def require_png(path: Path) -> None:
    """RequestError for a figure's file name with another ending: a figure is written as PNG only."""
    if path.suffix.lower() != ".png":
        raise RequestError(f"{path} should end in .png: the figure is written as PNG")


def write_figure(path: Path, figure_HWC: Bytes8) -> None:
    """The figure as PNG; folders on the way are made."""
    data = image.encode_png(figure_HWC, level=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_report(path: Path, results: Sequence[ImageResult], *, model: str) -> None:
    """The HTML page alone."""
    methods = [explain.get(name) for name in explain.available_methods()]
    page = render(
        rows=[ReportRow(result.name, result.view_png, result.reply) for result in results],
        title="What the network looked at",
        model=model,
        descriptions={method.name: (method.shows, method.does_not_show) for method in methods},
        titles={method.name: method.title for method in methods},
    )
    write(path, page)


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


def _write_result(draft: Path, result: ImageResult) -> str:
    folder = _unused(draft, Path(result.name).stem)
    folder.mkdir()
    (folder / "view.png").write_bytes(result.view_png)
    (folder / "reply.json").write_text(dumps(to_json(result.reply, result.params)), encoding="utf-8")
    for explanation in result.reply.explanations:
        if isinstance(explanation.result, Attribution):
            arrays = {"values_NCHW": explanation.result.values_NCHW, **explanation.result.extras}
            np.savez(folder / f"{explanation.id}.npz", **arrays, allow_pickle=False)
        for kind, data in (("overlay", explanation.overlay_png), ("heatmap", explanation.heatmap_png)):
            if data:
                (folder / f"{explanation.id}.{kind}.png").write_bytes(data)
    return folder.name


def _unused(draft: Path, stem: str) -> Path:
    """A folder name of its own: images from different places may have the same name."""
    path, count = draft / stem, 1
    while path.exists():
        count += 1
        path = draft / f"{stem}-{count}"
    return path


def _manifest(results: Sequence[ImageResult], names: Sequence[str], model: str) -> dict[str, object]:
    return {
        "convlens": convlens.__version__,
        "model": model,
        "weights_sha256": results[0].reply.weights_sha256,
        "pictures": [{"name": result.name, "folder": name} for result, name in zip(results, names, strict=True)],
    }
