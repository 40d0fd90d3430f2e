"""The page of a results folder in a real browser: what a click, a key and a filter do, and that nothing complains."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from browser_probe import BROWSER, DARK, WIDTHS, browse, dump_dom, serve
from PIL import Image

from convlens.cli.results import ImageResult, write_results
from convlens.report import TrueClass
from convlens.types import Attribution, Explanation, Meta, Neighbour, Neighbourhood, Prediction, Reply

pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH"), pytest.mark.slow]
LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft_" * 2
CLASSES = ("cat", "dog", LONG)
SHARES = (0.9, 0.6, 0.3)

# What a visitor does: filter, sort, change what the tiles show, open a picture, and walk through them by the keyboard.
VISIT = """await (async () => {
  const by = (id) => page.getElementById(id), names = () => [...page.querySelectorAll(".grid li:not([hidden]) .name")]
    .map((name) => name.textContent);
  const set = (id, value) => {
    by(id).value = value;
    for (const kind of ["input", "change"]) by(id).dispatchEvent(new view.Event(kind, { bubbles: true }));
    return names();
  };
  const key = (name) => (page.activeElement || page.body).dispatchEvent(
    new view.KeyboardEvent("keydown", { key: name, bubbles: true }));
  const heading = () => by("picture-name").textContent;
  const drawn = async () => {
    await Promise.all([...by("details").querySelectorAll("img")].map(settled));
    return [...by("details").querySelectorAll("img")].map((image) => [image.naturalWidth, image.width > 0]);
  };
  const seen = { all: names(), text: set("text", "DOG"), reset: set("text", ""), cats: set("class", "0") };
  set("class", "");
  seen.sure = set("least", "50");
  seen.between = set("most", "70");
  seen.none = [set("most", "10"), by("none").hidden];
  set("least", ""); set("most", "");
  seen.answers = ["wrong", "missed", "right", ""].map((answer) => set("answer", answer));
  seen.low = set("order", "low");
  seen.count = by("count").value;
  page.querySelector(".tile").click();
  seen.opened = [by("picture").open, heading(), by("place").textContent, by("previous").disabled];
  seen.images = await drawn();
  seen.wide = by("details").scrollWidth <= by("details").clientWidth;
  key("ArrowRight"); seen.next = heading();
  key("ArrowRight"); key("ArrowRight"); seen.last = [heading(), by("next").disabled];
  key("ArrowLeft"); seen.back = heading();
  seen.address = view.location.hash;
  const inside = (selector, what) => [...by("details").querySelectorAll(selector)].map(what);
  // Of the photograph below, and of the map over it.
  const opacities = () => inside(".stack img", (image) => view.getComputedStyle(image).opacity);
  const slide = (to) => {
    by("opacity").value = to;
    by("opacity").dispatchEvent(new view.Event("input", { bubbles: true }));
    return opacities();
  };
  seen.opacity = [opacities(), slide(25), slide(100)];
  seen.bars = inside(".bar-numbers", (bar) => [...bar.children].map((each) => each.textContent));
  set("beside", "0");
  seen.beside = [heading(), view.location.hash, inside(".comparison > article", (card) => card).length];
  seen.row = inside(".comparison > article", (card) => card.getBoundingClientRect()).slice(0, 2)
    .map((place) => [place.top, place.left]);
  key("ArrowRight"); seen.beside.push(heading());
  seen.compared = by("details").scrollWidth <= by("details").clientWidth;
  await drawn();
  set("beside", "-1"); key("ArrowLeft");
  seen.alone = [heading(), view.location.hash];
  by("details").querySelector(".enlarge").click();
  seen.enlarged = by("enlarged").open;
  by("enlarged").close(); by("close").click();
  // At once: the next frame that takes the focus takes it away from this one.
  await new Promise((done) => by("picture").addEventListener("close", done, { once: true }));
  seen.closed = [by("picture").open, page.activeElement.className, view.location.hash];
  set("shown", "occlusion");
  seen.shown = [...page.querySelectorAll(".tile img")].map((image) => image.getAttribute("src"));
  return seen;
})()"""


def encoded(width: int, *, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, width), (200, 90, 40)).save(buffer, form)
    return buffer.getvalue()


def result(n: int) -> ImageResult:
    """Of class n with the n-th share; the name of the last one is long and would be a script."""
    meta = Meta("a" * 64, "logit", "normalised", "float32", "cpu", relu_calls_seen=4, warnings=("a warning " + LONG,))
    values_NCHW = np.zeros((1, 1, 2, 2), np.float32)
    drops = Attribution(values_NCHW, np.array([1.0]), np.array([0]), "occlusion", {LONG: LONG}, meta)
    near = (Neighbour(f"1{LONG}", LONG, 1.0, encoded(16, form="JPEG")), Neighbour("2", "bare", 2.0))
    explanations = (
        Explanation("occlusion", "occlusion", drops, LONG, 1234.5, encoded(224), encoded(9)),
        Explanation("neighbours", "neighbours", Neighbourhood((near,), "neighbours", {}, meta), "", 1.5),
    )
    guesses = (Prediction(n, CLASSES[n], SHARES[n], 3.0), Prediction(9, "other", 0.05, 1.0))
    reply = Reply("net", "1.0", "a" * 64, "r", "cpu", guesses, explanations, ("take care",), {"forward": 2.0})
    name = "<script>console.error('escaped')<!--#?%.png" if n == 2 else f"picture {n}.png"
    # The first and the last are right, the second is of a class that its list does not have.
    true_class = TrueClass(7, "horse") if n == 1 else TrueClass(n, CLASSES[n])
    return ImageResult(name, encoded(224), reply, true_class)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_results(tmp_path / "site", [result(n) for n in range(3)], model=LONG)
    return tmp_path / "site"


@pytest.fixture
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    with serve(folder, "report.html", more=VISIT) as found:
        yield found


@pytest.mark.parametrize(("flags", "is_dark"), [((), False), ((DARK,), True)], ids=["light", "dark"])
def test_a_visitor_finds_every_picture_by_mouse_and_keyboard_at_every_width(
    served: tuple[str, list[str]], folder: Path, tmp_path: Path, flags: tuple[str, ...], is_dark: bool
) -> None:
    address, asked = served
    frames, complaints = browse(address, tmp_path / "profile", *flags)
    assert [frame["needed"] for frame in frames] == list(WIDTHS)  # nothing sticks out sideways
    assert {(frame["images"], frame["broken"]) for frame in frames} == {(3, 0)}
    assert [frame["faint"] for frame in frames] == [[]] * len(WIDTHS)
    assert {frame["paper"] < 0.1 for frame in frames} == {is_dark}
    assert "CONSOLE" not in complaints
    script = "<script>console.error('escaped')<!--#?%.png"
    for frame in frames:
        seen = frame["more"]
        assert seen["all"] == seen["reset"] == ["picture 0.png", "picture 1.png", script]
        assert (seen["text"], seen["cats"]) == (["picture 1.png"], ["picture 0.png"])
        # .9 and .6 are at least 50 %, .6 alone at most 70 %
        assert (seen["sure"], seen["between"]) == (["picture 0.png", "picture 1.png"], ["picture 1.png"])
        assert seen["none"] == [[], False]
        assert seen["low"] == [script, "picture 1.png", "picture 0.png"]
        assert seen["count"] == "3 of 3 images"
        assert seen["opened"] == [True, script, "1 of 3", True]
        assert seen["answers"] == [["picture 1.png"], ["picture 1.png"], ["picture 0.png", script], seen["all"]]
        assert seen["images"] == [[224, True], [224, True], [224, True], [9, True], [16, True]]
        assert seen["opacity"] == [["1", "1"], ["1", "0.25"], ["1", "1"]]
        # Of a map that is 0 throughout the scale ends at 1; an overlay that is not of the map's size has no bar.
        assert seen["bars"] == [["\u22121", "0", "1"]]
        assert seen["beside"] == [
            "picture 1.png beside picture 0.png",
            "#image-2-beside-1",
            4,
            "picture 0.png beside picture 0.png",
        ]
        (left_top, left), (right_top, right) = seen["row"]
        assert left_top == right_top and left < right
        assert seen["compared"] and seen["alone"] == ["picture 1.png", "#image-2"]
        assert seen["wide"]
        assert (seen["next"], seen["last"], seen["back"]) == (
            "picture 1.png",
            ["picture 0.png", True],
            "picture 1.png",
        )
        assert (seen["address"], seen["enlarged"]) == ("#image-2", True)
        assert seen["closed"] == [False, "tile", ""]
        assert all(source.endswith("/occlusion.overlay.png") for source in seen["shown"])
    assert all((folder / unquote(path).removeprefix("/")).is_file() for path in asked)


def test_the_page_opens_from_the_disk_at_the_picture_that_its_address_names(folder: Path, tmp_path: Path) -> None:
    page, complaints = dump_dom(f"{(folder / 'report.html').as_uri()}#image-3", tmp_path / "profile")
    assert "CONSOLE" not in complaints
    assert 'id="picture-name"' in page
    assert "%3Cscript%3Econsole.error%28%27escaped%27%29%3C%21--%23%3F%25/occlusion.overlay.png" in page


def test_pictures_far_below_the_first_screen_are_not_asked_for(tmp_path: Path) -> None:
    shown = [replace(result(n % 2), name=f"{n}.png") for n in range(300)]
    write_results(tmp_path / "site", shown, model="net")
    # A headless browser loads all images at once unless it is told otherwise.
    lazily = ("--blink-settings=lazyLoadEnabled=true", "--window-size=1440,1000")
    with serve(tmp_path / "site", "report.html") as (address, asked):
        dump_dom(f"{address}/report.html", tmp_path / "profile", *lazily)
    thumbnails = [path for path in asked if path.endswith("thumbnail.jpg")]
    # Seven in a row: those of the first screen, and of the three or so below that the browser looks ahead.
    assert 7 <= len(thumbnails) < 150
    assert not [path for path in asked if "overlay" in path or "view.png" in path]
