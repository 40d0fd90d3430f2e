"""What ``explain`` and ``demo`` leave in a folder: arrays, pictures, the reply, a report, and the manifest last."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import convlens
from convlens import explain
from convlens.errors import RequestError
from convlens.folders import replaced
from convlens.report import ReportRow, write
from convlens.service.reply import dumps, to_json
from convlens.service.request import Params
from convlens.types import Attribution, Reply

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
    with replaced(folder) as draft:
        names = [_write_answer(draft, answer) for answer in answers]
        write_report(draft / "report.html", answers, model=model)
        (draft / MANIFEST).write_text(json.dumps(_manifest(answers, names, model), indent=1), encoding="utf-8")


def write_report(path: Path, answers: Sequence[Answer], *, model: str, notes: Sequence[str] = ()) -> None:
    """The HTML page alone."""
    known = [explain.get(name) for name in explain.methods()]
    write(
        path,
        rows=[ReportRow(answer.name, answer.view_png, answer.reply) for answer in answers],
        title="What the network looked at",
        model=model,
        descriptions={method.name: (method.shows, method.does_not_show) for method in known},
        titles={method.name: method.title for method in known},
        notes=notes,
    )


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
