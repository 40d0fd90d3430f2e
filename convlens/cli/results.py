"""What ``explain`` and ``demo`` leave in a folder: arrays, pictures, the reply, a report, and the manifest last.

The closing table of ``explain`` and ``demo``.
"""

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
from convlens import explain
from convlens.cli.console import out
from convlens.errors import RequestError
from convlens.protocol.params import Params
from convlens.protocol.responses import dumps, to_json
from convlens.report import ReportRow, render, write
from convlens.types import Attribution, Explanation, Reply
from convlens.utils.files import replace_folder

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Answer:
    """A picture's name, what the model saw of it (PNG), the reply and the parameters it answers."""

    name: str
    view_png: bytes
    reply: Reply
    params: Params


def write_folder(folder: Path, answers: Sequence[Answer], *, model: str) -> None:
    """Write all answers, beside and then renamed: the folder is the old one or the whole new one.

    Raises RequestError for a folder with other things in it.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file())):
        raise RequestError(f"{folder} holds other things than results; choose a new folder or empty it")
    with replace_folder(folder) as draft:
        names = [_write_answer(draft, answer) for answer in answers]
        write_report(draft / "report.html", answers, model=model)
        (draft / MANIFEST).write_text(json.dumps(_manifest(answers, names, model), indent=1), encoding="utf-8")


def write_report(path: Path, answers: Sequence[Answer], *, model: str, notes: Sequence[str] = ()) -> None:
    """The HTML page alone."""
    known = [explain.get(name) for name in explain.available_methods()]
    page = render(
        rows=[ReportRow(answer.name, answer.view_png, answer.reply) for answer in answers],
        title="What the network looked at",
        model=model,
        descriptions={method.name: (method.shows, method.does_not_show) for method in known},
        titles={method.name: method.title for method in known},
        notes=notes,
    )
    write(path, page)


def _write_answer(draft: Path, answer: Answer) -> str:
    folder = _unused(draft, Path(answer.name).stem)
    folder.mkdir()
    (folder / "view.png").write_bytes(answer.view_png)
    (folder / "reply.json").write_text(dumps(to_json(answer.reply, answer.params)), encoding="utf-8")
    for one in answer.reply.explanations:
        if isinstance(one.result, Attribution):
            arrays = {"values_NCHW": one.result.values_NCHW, **one.result.extras}
            np.savez(folder / f"{one.id}.npz", **arrays, allow_pickle=False)
        for kind, data in (("overlay", one.overlay_png), ("heatmap", one.heatmap_png)):
            if data:
                (folder / f"{one.id}.{kind}.png").write_bytes(data)
    return folder.name


def _unused(draft: Path, stem: str) -> Path:
    """A folder name of its own for pictures of the same name from different places."""
    path, count = draft / stem, 1
    while path.exists():
        count += 1
        path = draft / f"{stem}-{count}"
    return path


def _manifest(answers: Sequence[Answer], names: Sequence[str], model: str) -> dict[str, object]:
    return {
        "convlens": convlens.__version__,
        "model": model,
        "weights_sha256": answers[0].reply.weights_sha256,
        "pictures": [{"name": answer.name, "folder": name} for answer, name in zip(answers, names, strict=True)],
    }


def show_table(answers: Sequence[Answer]) -> None:
    """A row a picture: its best three classes, and each explanation's target (with its score) and time."""
    table = Table()
    for heading in ("picture", "top 3", "explanation", "of"):
        table.add_column(heading, overflow="fold")
    table.add_column("ms", justify="right")
    for answer in answers:
        for cells in _lines(answer):
            # Text, not str: a label or a file name is never read as markup.
            table.add_row(*map(Text, cells))
        table.add_section()
    out.print(table)


def _lines(answer: Answer) -> Iterator[tuple[str, ...]]:
    """The table's rows for one picture: a line each for a class and an explanation, side by side."""
    top = [f"{one.label} {one.probability:.1%}" for one in answer.reply.predictions[:3]]
    explained = [(one.id, _about(one), f"{one.milliseconds:.0f}") for one in answer.reply.explanations]
    for n, (best, cells) in enumerate(zip_longest(top, explained)):
        yield answer.name if n == 0 else "", best or "", *(cells or ("", "", ""))


def _about(one: Explanation) -> str:
    if isinstance(one.result, Attribution):
        return f"{one.target_label} ({float(one.result.score_N[0]):.2f})"
    nearest = one.result.neighbours_NM[0][0]
    return f"{nearest.id} ({nearest.distance:.2f})"
