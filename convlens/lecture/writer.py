"""Makes the figures of a lecture that are not there yet, one after another, and the page that shows all.

OUT/lecture.json          which network and images; written first, and another lecture is refused
OUT/results/              what the commands wrote; OUT/results/done.jsonl names those that ended
OUT/figures/NAME.png      a figure, or NAME.jpg; NAME.json holds its text, commands and numbers and is written last
OUT/index.html            the page
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import convlens
from convlens import image
from convlens.errors import RequestError
from convlens.lecture.base import RESULTS, Chapter, Command, Drawn, Figure, Lecture, chapter_names, get_chapter
from convlens.report.lecture_page import ChapterPart, ShownFigure, render_lecture
from convlens.types import no_op
from convlens.utils.files import atomic_write, exclusive_lock, require_writable, sync_file

DESCRIPTION, FIGURES, PAGE = "lecture.json", "figures", "index.html"
_DONE, _LOCK = f"{RESULTS}/done.jsonl", ".lock"

RunCommand = Callable[[Sequence[str]], None]
OnFigure = Callable[[str, str], None]


@dataclass(frozen=True)
class LeftOut:
    """A figure or a whole chapter that could not be made, and why."""

    title: str
    reason: str


def require_lecture_folder(out: Path) -> None:
    """RequestError, before any work, for a folder that no lecture can be written into."""
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; choose a folder", field="output")
    if out.is_dir() and not (out / DESCRIPTION).is_file() and any(path.name[:1] != "." for path in out.iterdir()):
        raise RequestError(f"{out} holds other things than a lecture; choose a new or empty folder", field="output")
    require_writable(out)


@contextlib.contextmanager
def lecture_folder(out: Path, description: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of that lecture, made where it is missing, for this process alone.

    Raises RequestError for a folder of something else, of another lecture (with what differs), and for one that another
    process works in.
    """
    require_lecture_folder(out)
    path = out / DESCRIPTION
    out.mkdir(parents=True, exist_ok=True)
    busy = RequestError(f"{out} is being worked on by another process; wait until it is done", field="output")
    with exclusive_lock(out / _LOCK, busy=busy):
        if not path.is_file():
            _write(path, json.dumps(description, indent=1).encode())
        earlier = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name, value in description.items() if earlier.get(name) != value]
        if different:
            raise RequestError(
                f"{out} holds a lecture with other {', '.join(different)}; choose another folder, or remove this one",
                field="output",
            )
        yield out


def write_lecture(
    lecture: Lecture, run: RunCommand, *, chapters: Sequence[str] = (), on_figure: OnFigure = no_op
) -> list[LeftOut]:
    """Make the figures of these chapters, by default of all, that are not there yet; returns what was left out.

    ``run`` runs a command of ConvLens, given its arguments, in the lecture's folder. ``on_figure`` is called with the
    chapter's and the figure's title before each is made. The page shows all figures that the folder holds, and is
    written after each. RequestError for a chapter that does not exist.
    """
    chosen = [get_chapter(name) for name in chapters or chapter_names()]
    writer = _Writer(lecture, run, on_figure)
    writer.write_page()
    return [omission for chapter in chosen for omission in writer.make_chapter(chapter)]


class _Writer:
    def __init__(self, lecture: Lecture, run: RunCommand, on_figure: OnFigure) -> None:
        self._lecture, self._run, self._on_figure = lecture, run, on_figure
        for folder in (FIGURES, RESULTS):
            (lecture.folder / folder).mkdir(exist_ok=True)

    def make_chapter(self, chapter: Chapter) -> Iterator[LeftOut]:
        """Every figure of the chapter that is missing; one that fails leaves the others alone."""
        place = 0
        try:
            for place, figure in enumerate(chapter.figures(self._lecture)):
                reason = "" if self._is_there(figure) else self._make(chapter, place, figure)
                if reason:
                    yield LeftOut(f"{chapter.title}: {figure.title}", reason)
        except RequestError as error:
            # The figures after it are not even known.
            self._leave_out(chapter, place + 1, f"{chapter.name}-further", chapter.title, error.message)
            self.write_page()
            yield LeftOut(chapter.title, error.message)

    def _make(self, chapter: Chapter, place: int, figure: Figure) -> str:
        """The reason why it could not be made; empty where it was."""
        self._on_figure(chapter.title, figure.title)
        try:
            self._lecture.require(figure)
            for command in figure.commands:
                self._run_once(command)
            drawn = figure.draw()
        except RequestError as error:
            self._leave_out(chapter, place, figure.name, figure.title, error.message)
            reason = error.message
        else:
            self._store(chapter, place, figure, drawn)
            reason = ""
        self.write_page()
        return reason

    def _run_once(self, command: Command) -> None:
        """Run the command, unless an earlier run of this lecture has ended it."""
        done = self._lecture.folder / _DONE
        ended = done.read_text(encoding="utf-8").splitlines() if done.is_file() else []
        line = json.dumps(command.arguments)
        if line in ended and self._lecture.path(command.output).exists():
            return
        self._run(command.arguments)
        if not self._lecture.path(command.output).exists():
            raise RequestError(f"`{command}` left everything out; run it to see why")
        with done.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            sync_file(file)

    def _is_there(self, figure: Figure) -> bool:
        stored = _read(self._lecture.folder / FIGURES / f"{figure.name}.json")
        commands = [str(command) for command in figure.commands]
        return (
            stored.get("commands") == commands and (self._lecture.folder / FIGURES / stored.get("file", "")).is_file()
        )

    def _store(self, chapter: Chapter, place: int, figure: Figure, drawn: Drawn) -> None:
        folder = self._lecture.folder / FIGURES
        pixels = np.ascontiguousarray(drawn.image_HWC)
        data = image.encode_jpeg(pixels, quality=92) if figure.photograph else image.encode_png(pixels, level=9)
        name = f"{figure.name}.{'jpg' if figure.photograph else 'png'}"
        _write(folder / name, data)
        stored = {
            **_place(chapter, place, figure.name, figure.title),
            "file": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "shows": figure.shows,
            "does_not_show": figure.does_not_show,
            "commands": [str(command) for command in figure.commands],
            "facts": [list(fact) for fact in drawn.facts],
            "pages": [list(page) for page in drawn.pages],
            "numbers": drawn.numbers,
        }
        _write(folder / f"{figure.name}.json", _json(stored))

    def _leave_out(self, chapter: Chapter, place: int, name: str, title: str, reason: str) -> None:
        stored = {**_place(chapter, place, name, title), "left_out": reason}
        _write(self._lecture.folder / FIGURES / f"{name}.json", _json(stored))

    def write_page(self) -> None:
        """The page of what the folder holds now."""
        folder = self._lecture.folder
        stored = [_read(path) for path in (folder / FIGURES).glob("*.json")]
        parts = []
        for chapter in map(get_chapter, chapter_names()):
            own = sorted(
                (each for each in stored if each.get("chapter") == chapter.name), key=lambda each: each["place"]
            )
            figures = [_shown(each) for each in own if "file" in each]
            left_out = [(each["title"], each["left_out"]) for each in own if "left_out" in each]
            parts.append(ChapterPart(chapter.name, chapter.title, figures, left_out))
        spec = self._lecture.classifier.spec
        page = render_lecture(
            model=spec.name,
            weights_sha256=spec.weights_sha256,
            version=convlens.__version__,
            is_quick=self._lecture.quick,
            chapters=parts,
        )
        _write(folder / PAGE, page.encode())


def _place(chapter: Chapter, place: int, name: str, title: str) -> dict[str, Any]:
    return {"chapter": chapter.name, "place": place, "name": name, "title": title}


def _shown(stored: Mapping[str, Any]) -> ShownFigure:
    return ShownFigure(
        name=stored["name"],
        title=stored["title"],
        address=f"{FIGURES}/{stored['file']}",
        numbers=f"{FIGURES}/{stored['name']}.json",
        width=stored["width"],
        height=stored["height"],
        shows=stored["shows"],
        does_not_show=stored["does_not_show"],
        facts=[(name, value) for name, value in stored["facts"]],
        commands=stored["commands"],
        pages=[(title, address) for title, address in stored["pages"]],
    )


def _read(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is no file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode()


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as draft:
        draft.write_bytes(data)
