"""The report in a real browser, served from 127.0.0.1 so that whatever it asks for is seen."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser_probe import BROWSER, DARK, WIDTHS, browse, serve
from PIL import Image

from convlens.report import ReportRow, render, write
from convlens.types import Attribution, Explanation, Meta, Neighbour, Neighbourhood, Prediction, Reply

pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH"), pytest.mark.slow]
LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft_" * 2


def encoded(width: int, *, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, width), (200, 90, 40)).save(buffer, form)
    return buffer.getvalue()


def row(name: str) -> ReportRow:
    meta = Meta("a" * 64, "logit", "normalised", "float32", "cpu", relu_calls_seen=4, warnings=("a warning " + LONG,))
    values_NCHW = np.zeros((1, 1, 2, 2), np.float32)
    drops = Attribution(values_NCHW, np.array([1.0]), np.array([0]), "occlusion", {LONG: LONG}, meta)
    near = tuple(Neighbour(f"{i}{LONG}", LONG, 1.0 + i, encoded(16, form="JPEG") if i else b"") for i in range(5))
    explanations = (
        Explanation(LONG, "occlusion", drops, LONG, 1234.5, encoded(224), encoded(9)),
        Explanation("neighbours", "neighbours", Neighbourhood((near,), "neighbours", {}, meta), "", 1.5),
    )
    guesses = tuple(Prediction(i, LONG if i else "a cat", 0.2, 1.0) for i in range(5))
    reply = Reply("net", "1.0", "a" * 64, "r", "cpu", guesses, explanations, ("take care",), {"forward": 2.0})
    return ReportRow(name, encoded(224, form="JPEG"), reply)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    folder = tmp_path / "site"
    folder.mkdir()
    words = {"occlusion": ("what falls.", "the rest."), "neighbours": ("what is near.", "why.")}
    rows = [row("cat.png"), row(f"<script>console.error('escaped')</script>{LONG}.png")]
    page = render(rows=rows, title=f"A title {LONG}", model=LONG, descriptions=words, notes=(LONG,))
    write(folder / "report.html", page)
    with serve(folder, "report.html") as found:
        yield found


@pytest.mark.parametrize(("flags", "is_dark"), [((), False), ((DARK,), True)], ids=["light", "dark"])
def test_a_browser_shows_every_image_at_every_width_with_readable_text_and_no_complaint(
    served: tuple[str, list[str]], tmp_path: Path, flags: tuple[str, ...], is_dark: bool
) -> None:
    address, asked = served
    frames, complaints = browse(address, tmp_path / "profile", *flags)
    assert [frame["width"] for frame in frames] == list(WIDTHS)
    assert [frame["needed"] for frame in frames] == list(WIDTHS)  # nothing sticks out sideways
    assert {(frame["images"], frame["broken"], frame["buttons"]) for frame in frames} == {(14, 0, 14)}
    assert {frame["enlarged"] for frame in frames} == {224}
    assert [frame["faint"] for frame in frames] == [[]] * len(WIDTHS)
    assert {frame["paper"] < 0.1 for frame in frames} == {is_dark}
    assert "CONSOLE" not in complaints
    assert set(asked) == {"/probe.html", "/report.html"}
