"""The pages of an atlas in a real browser: served and from the disk, at all widths, by mouse and by keyboard."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_probe import BROWSER, DARK, QUIET, WIDTHS, browse, serve
from small_atlases import LAST, atlas, images_with_a_broken_one

pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH"), pytest.mark.slow]

# What a visitor does on the index, on a layer's page and on a channel's page.
INDEX = """await (async () => {
  const field = page.getElementById("everywhere");
  const names = () => [...page.querySelectorAll("#hits .number")].map((name) => name.textContent);
  const search = (text) => {
    field.value = text;
    field.dispatchEvent(new view.Event("input", { bubbles: true }));
    return names();
  };
  return { unit: search("3 7"), none: search("zzz"), count: page.getElementById("found").value, reset: search("") };
})()"""
LAYER = """await (async () => {
  const by = (id) => page.getElementById(id);
  const numbers = () => [...page.querySelectorAll("#grid li:not([hidden]) .number")].map((each) => each.textContent);
  const set = (id, value) => {
    by(id).value = value;
    by(id).dispatchEvent(new view.Event("input", { bubbles: true }));
    return numbers();
  };
  const seen = { all: numbers(), range: set("text", "2-3,5"), none: [set("text", "zzz"), by("none").hidden] };
  seen.image = set("text", "00.PNG").length > 0;
  set("text", "");
  seen.strongest = set("order", "strongest");
  seen.count = by("count").value;
  set("shown", "patch");
  seen.shown = [...page.querySelectorAll("#grid img")].every((image) => image.src.includes("/patch-1."));
  seen.links = [...page.querySelectorAll("#grid a")].every((link) => link.tabIndex === 0);
  return seen;
})()"""
CHANNEL = """await (async () => {
  const by = (id) => page.getElementById(id);
  const link = page.querySelector(".where");
  link.focus();
  link.click();
  const seen = { open: by("place").open, name: by("place-name").textContent };
  const [under, box] = page.querySelectorAll("#place rect");
  seen.box = ["x", "y", "width", "height"].map((name) => Number(box.getAttribute(name)));
  seen.drawn = page.querySelector("#place image").getBoundingClientRect().width > 0;
  seen.focus = by("place").contains(page.activeElement);
  by("place").querySelector(".close").click();
  seen.closed = !by("place").open;
  seen.neighbours = ["previous", "next"].map((id) => by(id) && by(id).getAttribute("href"));
  return seen;
})()"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    atlas(images_with_a_broken_one(folder / "images"), folder / "site")
    return folder / "site"


@pytest.fixture(
    params=[("index.html", INDEX), (f"layers/{LAST}/index.html", LAYER), (f"layers/{LAST}/3.html", CHANNEL)]
)
def served(site: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, str, list[str]]]:
    page, visit = request.param
    with serve(site, page, more=visit) as (address, asked):
        yield page, address, asked


@pytest.mark.parametrize(("flags", "is_dark"), [((), False), ((DARK,), True)], ids=["light", "dark"])
def test_the_pages_are_whole_at_every_width(
    served: tuple[str, str, list[str]], tmp_path: Path, flags: tuple[str, ...], is_dark: bool
) -> None:
    page, address, asked = served
    frames, complaints = browse(address, tmp_path / "profile", *flags)
    assert "CONSOLE" not in complaints
    assert [frame["needed"] for frame in frames] == list(WIDTHS)  # nothing sticks out sideways
    assert [frame["broken"] for frame in frames] == [0] * len(WIDTHS)
    assert [frame["faint"] for frame in frames] == [[]] * len(WIDTHS)
    assert {frame["paper"] < 0.1 for frame in frames} == {is_dark}
    for frame in frames:
        CHECKS[page](frame["more"])
    if page.endswith("3.html"):
        assert any(path.startswith("/images/") for path in asked)  # the image around the patch
    assert all(
        path.startswith(("/probe.html", "/layers/", "/pictures/", "/images/", "/index", "/atlas")) for path in asked
    )


def check_index(seen: dict[str, object]) -> None:
    assert seen == {"unit": ["3 7"], "none": [], "count": "0 of 14 channels", "reset": []}


def check_layer(seen: dict[str, object]) -> None:
    every = [str(n) for n in range(8)]
    assert (seen["all"], seen["range"], seen["none"]) == (every, ["2", "3", "5"], [[], False])
    assert seen["image"]
    assert sorted(seen["strongest"]) == every and seen["strongest"] != every  # type: ignore[call-overload]
    assert (seen["count"], seen["shown"], seen["links"]) == ("8 of 8 channels", True, True)


def check_channel(seen: dict[str, object]) -> None:
    assert (seen["open"], seen["drawn"], seen["focus"]) == (True, True, True)
    assert str(seen["name"]).endswith(".png")
    *_, width, height = seen["box"]  # type: ignore[misc]
    assert width == height == 5  # 3 + (3 − 1) · 1 pixels of the receptive field
    assert seen["closed"]
    assert seen["neighbours"] == ["2.html", "4.html"]


CHECKS = {"index.html": check_index, f"layers/{LAST}/index.html": check_layer, f"layers/{LAST}/3.html": check_channel}


@pytest.mark.parametrize("page", ["index.html", f"layers/{LAST}/index.html", f"layers/{LAST}/3.html"])
def test_the_pages_open_from_the_disk_with_their_style_and_script(site: Path, tmp_path: Path, page: str) -> None:
    command = [str(BROWSER), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (site / page).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    if page.endswith("3.html"):
        assert 'id="place"' in done.stdout
    else:
        # What the script does first: it shows the fields of the search.
        field = "find" if page == "index.html" else "controls"
        (tag,) = [line for line in done.stdout.splitlines() if f'id="{field}"' in line]
        assert "hidden" not in tag.partition(">")[0]
