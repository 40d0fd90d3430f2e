"""The page of an evaluation in a real browser: nothing sticks out, every map is shown, columns sort, words are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import evaluations
import pytest
from browser_probe import BROWSER, DARK, WIDTHS, browse, serve
from PIL import Image

from convlens.report.evaluation_page import write_evaluation_page

pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH"), pytest.mark.slow]
LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft_" * 2
HOSTILE = f"<script>console.error('escaped')</script>{LONG}"
FILES = ("maps/1 #a?%41.png", "maps/2.png")
# The first cells of the table's rows, after a click on the heading of the last column and after a second one.
SORTED = """(() => {
  const names = () => [...page.querySelectorAll("#methods tbody th > bdi")].map((each) => each.textContent);
  const last = page.querySelector("#methods thead th:last-child"), button = last.querySelector("button");
  button.click();
  const first = [last.getAttribute("aria-sort"), names()];
  button.click();
  return [first, [last.getAttribute("aria-sort"), names()]];
})()"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    folder = tmp_path / "site"
    (folder / "maps").mkdir(parents=True)
    for file in FILES:
        Image.new("RGB", (224, 224), (200, 90, 40)).save(folder / file)
    summary, verdict, settings = evaluations.summary(), evaluations.verdict(), evaluations.settings()
    summary["methods"]["smooth_grad"]["seconds"] = None  # ranks second, and last where the seconds sort
    summary["methods"][HOSTILE] = evaluations.failed_summary(HOSTILE)
    summary["failures"].append({"id": HOSTILE, "reason": HOSTILE})
    verdict["headline"] = verdict["sentences"][HOSTILE] = HOSTILE
    maps = {"saliency": dict(zip(evaluations.PICTURES, FILES, strict=False))}
    write_evaluation_page(
        folder,
        settings=settings | {"model": HOSTILE, HOSTILE: HOSTILE},
        summary=summary,
        verdict=verdict,
        records=evaluations.records(),
        maps=maps,
    )
    with serve(folder, "index.html", more=SORTED) as found:
        yield found


@pytest.mark.parametrize(("flags", "is_dark"), [((), False), ((DARK,), True)], ids=["light", "dark"])
def test_a_browser_shows_the_evaluation_at_every_width_with_readable_text_and_no_complaint(
    served: tuple[str, list[str]], tmp_path: Path, flags: tuple[str, ...], is_dark: bool
) -> None:
    address, asked = served
    frames, complaints = browse(address, tmp_path / "profile", *flags)
    assert [frame["needed"] for frame in frames] == list(WIDTHS)  # nothing sticks out sideways
    assert {(frame["images"], frame["broken"], frame["buttons"]) for frame in frames} == {(2, 0, 2)}
    assert {frame["enlarged"] for frame in frames} == {224}
    assert [frame["faint"] for frame in frames] == [[]] * len(WIDTHS)
    assert {frame["paper"] < 0.1 for frame in frames} == {is_dark}
    assert "CONSOLE" not in complaints
    assert set(asked) == {"/probe.html", "/index.html", *(f"/{quote(file)}" for file in FILES)}


def test_a_click_on_a_heading_sorts_by_its_column_and_leaves_what_was_not_measured_last(
    served: tuple[str, list[str]], tmp_path: Path
) -> None:
    frames, _ = browse(served[0], tmp_path / "profile")
    (first_order, quickest_first), (second_order, slowest_first) = frames[0]["more"]
    assert (first_order, second_order) == ("ascending", "descending")
    # 0 s of the four baselines, then 28, 30 and 31 ms
    assert quickest_first[4:7] == ["Grad cam", "Saliency", "Guided backprop"]
    assert slowest_first[:2] == ["Occlusion", "Integrated gradients"]
    without = {"Smooth grad", "Score cam", HOSTILE.replace("_", " ").strip()}
    assert {*quickest_first[-3:]} == {*slowest_first[-3:]} == without
