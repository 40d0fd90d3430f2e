"""The explorer's page in a real Chromium: pictures, classes, maps and hidden windows, with the library's numbers."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import skimage.data
import torch
from browser_probe import BROWSER
from devtools import Page, open_browser
from explorer_page import READY, choose_class, choose_method, saved_array, served, shown_probabilities, visit
from explorer_sites import browser_runtime
from PIL import Image
from torch import Tensor, nn

from convlens import image
from convlens.explain import ForwardPass, run
from convlens.explain.scores import scores_of
from convlens.explorer.site import Sample, write_site
from convlens.gallery import build_from
from convlens.models import Classifier
from convlens.types import Attribution

pytest.importorskip("onnxscript")
pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH"), pytest.mark.slow]

CLASSES, SIDE = 6, 48
TARGET = 4
METHODS = ("saliency", "guided_backprop", "grad_cam", "occlusion")
WINDOW = {"left": 8, "top": 12, "width": 16, "height": 16}
TOLERANCE = 1e-4  # float32 sums in another order, of the largest value


class Small(nn.Module):
    """Two convolutions, ReLUs and a head; a class is told by what lies where."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12 * 6 * 6, CLASSES)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features_NCHW = torch.relu(self.second(torch.relu(self.first(x_NCHW))))
        return self.head(torch.max_pool2d(features_NCHW, 2).flatten(1))


@pytest.fixture(scope="module")
def network() -> Classifier:
    return nets.classifier(nets.seeded(Small).float(), classes=CLASSES, crop=SIDE, gradcam_layer="second")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A landscape and an upright one. The site's samples are JPEG, which a browser decodes as libjpeg does."""
    folder = tmp_path_factory.mktemp("photographs")
    pixels = {"cat": skimage.data.chelsea()[:200, :300], "cup": skimage.data.coffee()[50:350, 100:300]}
    for name, pixels_HWC in pixels.items():
        Image.fromarray(pixels_HWC).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in pixels}


@pytest.fixture(scope="module")
def site(network: Classifier, photographs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    samples = [Sample(path, name.title(), "a photograph") for name, path in photographs.items()]
    gallery = [(name, f"a {name}", image.read(path)) for name, path in photographs.items()]
    build_from(gallery, folder / "gallery", network)
    write_site(
        network,
        folder / "site",
        runtime=browser_runtime(),
        methods=[*METHODS, "neighbours"],
        samples=samples,
        gallery=folder / "gallery",
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
    """The explorer as on a first visit, its first sample explained; afterwards nothing must have complained."""
    visit(browser, address)
    yield browser
    assert browser.complaints == []


# ---- what the library says


def opened(site: Path, name: str) -> Image.Image:
    return Image.open(site / "samples" / f"{name}.jpg").convert("RGB")


def logits_of(network: Classifier, x_CHW: Any) -> Any:
    return ForwardPass(network, torch.from_numpy(x_CHW)[None]).logits_NK[0]


def expected_probabilities(network: Classifier, x_CHW: Any) -> Any:
    return scores_of(logits_of(network, x_CHW)[None].astype(np.float64), "probability", "softmax")[0]


def explained(network: Classifier, picture: Image.Image, method: str, *, target: int = TARGET, **options: Any) -> Any:
    x_1CHW = torch.from_numpy(image.prepare(picture, network.spec).x_CHW)[None]
    result = run(method, ForwardPass(network, x_1CHW), [target], options)
    assert isinstance(result, Attribution)
    return result.values_NCHW[0]


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


# ---- tests


def test_a_sample_is_predicted_as_the_library_predicts_it(page: Page, site: Path, network: Classifier) -> None:
    x_CHW = image.prepare(opened(site, "cat"), network.spec).x_CHW
    expected_K = expected_probabilities(network, x_CHW)

    shown = shown_probabilities(page)

    assert len(shown) == CLASSES
    close([shown[index] for index in range(CLASSES)], expected_K)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_has_the_library_s_numbers(page: Page, site: Path, network: Classifier, method: str) -> None:
    expected_CHW = explained(network, opened(site, "cat"), method)
    choose_class(page, f"class {TARGET}")

    choose_method(page, method)

    close(saved_array(page), expected_CHW)


def test_options_of_a_method_are_those_of_the_command_line(page: Page, site: Path, network: Classifier) -> None:
    options = {"window": 12, "stride": 6}
    expected_CHW = explained(network, opened(site, "cat"), "occlusion", **options)
    state = "".join(f"&set=occlusion.{name}={value}" for name, value in options.items())

    visit(page, page.evaluate("location.origin + '/'"), f"#method=occlusion&class={TARGET}{state}")

    close(saved_array(page), expected_CHW)
    command = page.evaluate("document.getElementById('command').textContent")
    assert all(f"--set occlusion.{name}={value}" in command for name, value in options.items()), command
    assert f"--methods occlusion --target {TARGET}" in command


def test_occlusion_shows_its_map_while_it_computes(page: Page) -> None:
    visit(
        page, page.evaluate("location.origin + '/'"), "#method=saliency&set=occlusion.window=12&set=occlusion.stride=6"
    )
    page.evaluate(
        "window.seen = [], new MutationObserver(() => seen.push(['.status', '.ticks'].map((part) =>"
        "document.querySelector(part)?.textContent))).observe(document.getElementById('panes'),"
        "{ subtree: true, childList: true, characterData: true }), null"
    )

    choose_method(page, "occlusion")

    seen = page.evaluate("window.seen")
    partial = {ticks for status, ticks in seen if re.fullmatch(r"Occlusion \d+ of 49", status) and ticks}
    assert len(partial) > 1, seen


def test_hiding_a_window_moves_every_score_as_in_the_library(page: Page, site: Path, network: Classifier) -> None:
    x_CHW = image.prepare(opened(site, "cat"), network.spec).x_CHW.copy()
    left, top, width, height = WINDOW.values()
    x_CHW[:, top : top + height, left : left + width] = 0
    expected_K = expected_probabilities(network, x_CHW)
    hide = ",".join(map(str, WINDOW.values()))

    visit(page, page.evaluate("location.origin + '/'"), f"#method=saliency&hide={hide}")
    page.wait_for("document.querySelectorAll('#predictions .moved').length === 6")

    shown = shown_probabilities(page)
    close([shown[index] for index in range(CLASSES)], expected_K)


def test_a_window_is_dragged_and_the_keyboard_moves_it(page: Page) -> None:
    hidden = "new URLSearchParams(location.hash.slice(1)).get('hide')"
    page.click("#hide")
    x, y = page.evaluate(
        "(() => { const canvas = document.querySelector('.pane canvas'); canvas.scrollIntoView({block: 'center'});"
        "const box = canvas.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2] })()"
    )
    start = page.wait_for(hidden)

    page.drag((x + 60, y + 60), (x + 160, y + 140))
    dragged = page.wait_for(f"{hidden} !== {json.dumps(start)} && {hidden}")
    page.evaluate("document.querySelector('.pane canvas').focus(), null")
    page.key("ArrowLeft")
    moved = page.wait_for(f"{hidden} !== {json.dumps(dragged)} && {hidden}")

    before, after = (list(map(int, text.split(","))) for text in (dragged, moved))
    assert before[2] > before[3] > 0, "wider than high, as it was dragged"
    assert after == [before[0] - 4, *before[1:]]


def test_two_classes_stand_side_by_side_with_maps_of_their_own(page: Page, site: Path, network: Classifier) -> None:
    x_CHW = image.prepare(opened(site, "cat"), network.spec).x_CHW
    best = np.argsort(-logits_of(network, x_CHW))[:2]
    choose_method(page, "guided_backprop")

    page.click("#compare-class")
    page.wait_for(f"document.querySelectorAll('.pane .colour-bar').length === 2 && {READY}")

    labels = page.evaluate("[...document.querySelectorAll('.pane .label')].map((label) => label.textContent)")
    assert labels == [network.spec.labels[index] for index in best]
    close(saved_array(page), explained(network, opened(site, "cat"), "guided_backprop", target=int(best[1])))


def test_two_pictures_stand_side_by_side(page: Page) -> None:
    page.click("#compare-picture")
    page.wait_for(f"document.querySelectorAll('.pane .colour-bar').length === 2 && {READY}")

    names = page.evaluate("[...document.querySelectorAll('.picture-name')].map((name) => name.textContent)")
    assert names == ["cat.jpg", "cup.jpg"]


def test_a_shared_scale_has_one_limit_for_both(page: Page) -> None:
    ticks = "[...document.querySelectorAll('.colour-bar')].map((bar) => bar.querySelector('.ticks').textContent)"
    page.click("#compare-picture")
    page.wait_for(f"document.querySelectorAll('.pane .colour-bar').length === 2 && {READY}")
    own = page.evaluate(ticks)

    page.click("#shared")

    shared = page.evaluate(ticks)
    assert own[0] != own[1]
    assert shared[0] == shared[1]


def test_the_page_says_whether_a_map_is_smoothed(page: Page) -> None:
    said = "[document.querySelector('.unit').textContent, document.getElementById('smooth-value').value]"

    choose_method(page, "saliency")
    over_the_photograph = page.evaluate(said)
    page.key("2")

    assert over_the_photograph == ["smoothed, σ 2 px", "σ 2 px"]
    assert page.evaluate(said) == ["raw", "raw"]


def test_the_value_under_the_pointer_is_that_of_the_map(page: Page, site: Path, network: Classifier) -> None:
    values_CHW = explained(network, opened(site, "cat"), "saliency")
    visit(page, page.evaluate("location.origin + '/'"), f"#method=saliency&class={TARGET}&view=map")
    page.evaluate("document.querySelector('.pane canvas').focus(), null")

    page.key("ArrowRight")  # the first press marks the middle

    shown = page.wait_for("document.querySelector('.readout').value")
    place, _, number = shown.partition(": ")
    middle = SIDE // 2
    expected = np.abs(values_CHW[:, middle, middle]).max()
    assert place == f"x {middle}, y {middle}"
    assert number.endswith("raw")
    assert float(number.split()[0]) == pytest.approx(expected, rel=5e-3)  # three digits are shown


def test_neighbours_are_the_gallery_s(page: Page, network: Classifier) -> None:
    choose_method(page, "neighbours")

    names = page.evaluate("[...document.querySelectorAll('.neighbours img')].map((made) => made.alt)")
    assert names[0] == "Gallery picture cat"
    assert page.wait_for("document.querySelector('.neighbours img').naturalWidth") > 0


# What the browser does with files that are let go over the page, and with those of the clipboard.
ARRIVALS = {
    "dropped": "new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })",
    "pasted": "new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true })",
}


def bring(page: Page, name: str, content: bytes, arrival: str) -> None:
    encoded = base64.b64encode(content).decode()
    page.evaluate(
        f"(() => {{ const bytes = Uint8Array.from(atob('{encoded}'), (letter) => letter.charCodeAt(0));"
        f"const data = new DataTransfer(); data.items.add(new File([bytes], {json.dumps(name)}));"
        f"document.querySelector('.pane canvas').dispatchEvent({ARRIVALS[arrival]}) }})()"
    )


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_a_picture_of_one_s_own_is_explained(
    page: Page, photographs: dict[str, Path], network: Classifier, arrival: str
) -> None:
    expected_K = expected_probabilities(network, image.prepare(Image.open(photographs["cup"]), network.spec).x_CHW)

    bring(page, "mine.png", photographs["cup"].read_bytes(), arrival)

    page.wait_for(f"document.querySelector('.picture-name')?.textContent === 'mine.png' && {READY}")
    shown = shown_probabilities(page)
    close([shown[index] for index in range(CLASSES)], expected_K)


def test_what_is_no_picture_is_refused_in_words(page: Page) -> None:
    bring(page, "notes.txt", b"no picture", "dropped")

    assert "notes.txt" in page.wait_for("document.getElementById('notice').textContent")


def test_a_folder_without_its_runtime_says_how_to_mend_it(browser: Page, site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site", ignore=shutil.ignore_patterns("runtime"))

    with served(tmp_path / "site") as url:
        browser.open(url)
        said = browser.wait_for("document.getElementById('notice').textContent")

    assert "convlens explore" in said


def test_a_method_that_the_folder_lacks_says_what_to_export(page: Page) -> None:
    choose_method(page, "integrated_gradients")

    said = page.wait_for("document.querySelector('#about .absent')?.textContent")
    assert "convlens explore" in said
    assert "integrated_gradients" in said


def test_the_address_holds_the_state(page: Page, address: str) -> None:
    choose_class(page, f"class {TARGET}")
    choose_method(page, "occlusion")
    page.key("2")
    page.wait_for("location.hash.includes('view=map')")
    state = page.evaluate("location.hash")

    visit(page, address, state)

    assert page.wait_for(f"location.hash === {json.dumps(state)}")
    pressed = "[...document.querySelectorAll('main [aria-pressed=true]')].map((made) => made.textContent)"
    shown = page.evaluate(pressed)
    assert "Occlusion" in shown
    assert "Map" in shown
    assert any(text.startswith(f"class {TARGET}") for text in shown)


def test_nothing_is_asked_of_anybody_else(page: Page, address: str) -> None:
    for method in METHODS:
        choose_method(page, method)

    asked = {request for request in page.requests if not request.startswith(("data:", "blob:", "about:"))}
    assert any(request.endswith(".wasm") for request in asked), "the workers' requests are seen as well"
    assert [request for request in asked if not request.startswith(address)] == []


def test_the_keyboard_alone_suffices(page: Page) -> None:
    pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map((made) => made.id || made.textContent)"
    focused = "document.activeElement.id"
    before = page.evaluate("document.querySelector('#chips [aria-pressed=true]').textContent")

    page.key("]")
    page.key("3")
    page.wait_for(f"document.querySelector('#chips [aria-pressed=true]').textContent !== {json.dumps(before)}")
    page.evaluate("document.activeElement.blur(), null")
    for _ in range(80):
        if page.evaluate(focused) == "compare-class":
            break
        page.key("Tab")
    page.key("Enter")
    page.wait_for(f"document.querySelectorAll('.pane').length === 2 && {READY}")
    page.key("h")

    assert {"Photo", "compare-class", "hide"} <= set(page.evaluate(pressed))
    assert page.evaluate("document.activeElement.tagName") == "CANVAS"
    page.key("?")
    assert page.evaluate("document.getElementById('help-dialog').open")


class Plain(http.server.SimpleHTTPRequestHandler):
    """As it is, without a header of its own."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_a_plain_static_server_suffices(browser: Page, site: Path, network: Classifier) -> None:
    handler = functools.partial(Plain, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        visit(browser, f"http://127.0.0.1:{server.server_address[1]}/", f"#method=guided_backprop&class={TARGET}")
        server.shutdown()

    assert browser.evaluate("crossOriginIsolated") is False
    close(saved_array(browser), explained(network, opened(site, "cat"), "guided_backprop"))
    assert browser.complaints == []


def test_an_isolated_page_computes_with_threads(page: Page) -> None:
    assert page.evaluate("crossOriginIsolated") is True


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_and_can_be_read(page: Page, width: int, dark: bool) -> None:
    page.size(width, 900, dark=dark)

    needed, side = page.evaluate(
        "[document.documentElement.scrollWidth, document.querySelector('.pane canvas').clientHeight]"
    )
    faint = page.evaluate(FAINT)

    assert needed <= width
    assert side >= (480 if width > 1000 else 300)
    assert faint == []


# Texts whose contrast with what is behind them is below 4.5 (WCAG 2.1, 1.4.3); disabled controls are exempt there.
FAINT = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => numbers(colour).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, n) => sum + part * [.2126, .7152, .0722][n], 0);
  const paper = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (numbers(colour).length < 4 || numbers(colour)[3] > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const contrast = (element) => {
    const [high, low] = [getComputedStyle(element).color, paper(element)].map(luminance).sort((a, b) => b - a);
    return (high + .05) / (low + .05);
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  return [...document.body.querySelectorAll("*")].filter((element) => hasText(element) && element.checkVisibility()
    && !element.closest(":disabled, label:has(:disabled)") && contrast(element) < 4.5)
    .map((element) => element.outerHTML.slice(0, 100));
})()"""
