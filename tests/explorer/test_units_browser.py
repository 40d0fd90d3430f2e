"""From a picture in the explorer to its strongest units' pages in the atlas, in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from browser_probe import BROWSER
from devtools import Page, open_browser
from explorer_page import READY, served, visit
from explorer_sites import browser_runtime
from PIL import Image
from small_atlases import FIRST, LAST, atlas, small_model
from small_evaluations import write_images

from convlens import image
from convlens.atlas.site_dir import read_atlas, read_records
from convlens.explorer.atlas_files import SiteAtlas
from convlens.explorer.site import Sample, write_site

pytest.importorskip("onnxscript")
pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH"), pytest.mark.slow]

LISTED = "[...document.querySelectorAll('#units-list a')]"
NUMBERS = f"{LISTED}.map((link) => Number(link.dataset.channel))"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    write_images(folder / "images", 4)
    atlas(folder / "images", folder / "atlas")
    samples = []
    for name, pixels_HWC in (("cat", skimage.data.chelsea()[:200, :300]), ("cup", skimage.data.coffee()[50:350, :300])):
        Image.fromarray(pixels_HWC).save(folder / f"{name}.png")
        samples.append(Sample(folder / f"{name}.png", name, "a photograph"))
    made = SiteAtlas(folder / "atlas", read_atlas(folder / "atlas"), read_records(folder / "atlas"))
    write_site(
        small_model(), folder / "site", runtime=browser_runtime(), methods=["occlusion"], samples=samples, atlas=made
    )
    return folder / "site"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with served(site) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, address: str) -> Iterator[Page]:
    visit(browser, address)
    yield browser
    assert browser.complaints == []


def activations(site: Path, sample: str, layer: str) -> list[float]:
    """Each channel's largest activation on the sample, by plain torch."""
    model = small_model()
    x_CHW = image.prepare(Image.open(site / "samples" / f"{sample}.jpg").convert("RGB"), model.spec).x_CHW
    with torch.no_grad():
        maps_CHW = model.module[: int(layer) + 1](torch.from_numpy(x_CHW)[None])[0]  # type: ignore[index, operator]
    return [float(value) for value in maps_CHW.amax((1, 2))]


def order(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda n: -values[n])


def shares(page: Page, site: Path, sample: str, layer: str) -> list[float]:
    facts: Any = page.evaluate("fetch('site.json').then((answer) => answer.json()).then(({ atlas }) => atlas.layers)")
    (channels,) = [each["channels"] for each in facts if each["name"] == layer]
    values = activations(site, sample, layer)
    # A channel that no image of the atlas excites comes last.
    return [v / c["strongest"] if c["strongest"] > 0 else -1 for v, c in zip(values, channels, strict=True)]


def open_list(page: Page) -> None:
    page.click("#units summary")
    page.wait_for(f"{LISTED}.length && !document.querySelector('[aria-busy]')")


def select(page: Page, field: str, value: str) -> None:
    page.evaluate(
        f"((field) => {{ field.value = '{value}'; field.dispatchEvent(new Event('change')) }})"
        f"(document.getElementById('{field}'))"
    )
    page.wait_for(f"{LISTED}.length && !document.querySelector('[aria-busy]')")


def test_the_list_is_shut_at_first_and_its_graph_not_loaded(page: Page) -> None:
    assert not page.evaluate("document.getElementById('units').open")
    assert not any("features.onnx" in address for address in page.requests)


@pytest.mark.parametrize("layer", [FIRST, LAST])
def test_the_units_are_those_that_answer_most_against_the_atlas_s_images(page: Page, site: Path, layer: str) -> None:
    expected = order(shares(page, site, "cat", layer))

    open_list(page)
    select(page, "units-layer", layer)

    assert page.evaluate(NUMBERS) == expected


def test_they_may_be_sorted_by_their_activations(page: Page, site: Path) -> None:
    values = activations(site, "cat", FIRST)

    open_list(page)
    select(page, "units-order", "activation")

    shown = page.evaluate(f"{LISTED}.map((link) => Number(link.querySelector('data').value))")
    assert page.evaluate(NUMBERS) == order(values)
    assert shown == pytest.approx(sorted(values, reverse=True), rel=1e-4)


def test_another_picture_has_its_own_units(page: Page, site: Path) -> None:
    open_list(page)
    before = page.evaluate(f"{LISTED}.map((link) => link.textContent)")

    page.click("[data-sample='1']")
    page.wait_for(f"{READY} && document.getElementById('units-of').textContent.includes('cup')")

    assert page.evaluate(NUMBERS) == order(shares(page, site, "cup", FIRST))
    assert page.evaluate(f"{LISTED}.map((link) => link.textContent)") != before


def test_a_click_opens_the_channel_s_page_of_the_atlas(page: Page, address: str) -> None:
    open_list(page)
    channel = page.evaluate(NUMBERS)[0]

    page.click("#units-list a")

    opened = f"{address}atlas/layers/{FIRST}/{channel}.html"
    page.wait_for_tab(opened)


def test_the_atlas_s_page_is_whole_beside_the_explorer(page: Page, address: str) -> None:
    page.open(f"{address}atlas/layers/{LAST}/3.html")

    page.wait_for("document.readyState === 'complete' && [...document.images].every((image) => image.naturalWidth)")
    assert "3" in page.evaluate("document.querySelector('h1').textContent")


def test_the_keyboard_opens_the_list_and_walks_its_links(page: Page) -> None:
    page.key("u")
    focused = "document.activeElement.dataset.channel"
    first = page.wait_for(focused)
    page.key("Tab")

    assert [first, page.evaluate(focused)] == [str(n) for n in page.evaluate(NUMBERS)[:2]]


def test_the_address_holds_the_list(page: Page, address: str) -> None:
    open_list(page)
    select(page, "units-layer", LAST)
    select(page, "units-order", "activation")
    page.wait_for("location.hash.includes('order=activation')")
    state, numbers = page.evaluate("location.hash"), page.evaluate(NUMBERS)

    visit(page, address, state)

    page.wait_for(f"{LISTED}.length")
    assert page.evaluate(NUMBERS) == numbers
    assert page.evaluate("document.getElementById('units-layer').value") == LAST


@pytest.mark.parametrize("width", [390, 1440])
def test_the_list_fits_and_its_pictures_are_there(page: Page, width: int) -> None:
    open_list(page)
    page.size(width, 900)

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.wait_for(f"{LISTED}.every((link) => link.querySelector('img').naturalWidth)")
