"""What axe-core finds wrong with the pages, in Chromium: nothing, on a phone and a wide screen, light and dark."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluations
import pytest
import skimage.data
from axe_core import require_axe, violations
from browser_probe import BROWSER
from devtools import Page, open_browser
from explorer_page import READY
from explorer_sites import browser_runtime
from PIL import Image
from small_atlases import FIRST, LAST, atlas, small_model
from small_evaluations import write_images

from convlens import image
from convlens.atlas.site_dir import read_atlas, read_records
from convlens.cli.results import ImageResult, write_results
from convlens.engine.engine import Engine
from convlens.explorer.atlas_files import SiteAtlas
from convlens.explorer.site import Sample, write_site
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.report.evaluation_page import write_evaluation_page
from convlens.types import Reply

pytest.importorskip("onnxscript")
pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH"), pytest.mark.slow]

PHOTOGRAPHS = {"cat": skimage.data.chelsea()[:200, :300], "cup": skimage.data.coffee()[50:350, :300]}
LOADED = "document.readyState === 'complete'"
UNITS = "document.querySelectorAll('#units-list a img').length && !document.querySelector('[aria-busy]')"
# The pages as they are opened, when they are there, and what a visitor opens of them then.
PAGES: dict[str, tuple[str, str, str]] = {
    "explorer": ("explorer/index.html#units=1", f"{READY} && {UNITS}", ""),
    "explorer, two classes": ("explorer/index.html#compare=class&hide=2,2,6,6", READY, ""),
    "explorer, a method that is missing": ("explorer/index.html#method=rise", READY, ""),
    "explorer, keys": ("explorer/index.html", READY, "#help"),
    "report": ("report/report.html", LOADED, ""),
    "report, an image": ("report/report.html#image-1", "document.getElementById('picture').open", ""),
    "atlas": ("atlas/index.html", LOADED, ""),
    "atlas, a layer": (f"atlas/layers/{FIRST}/index.html", LOADED, ""),
    "atlas, a channel": (f"atlas/layers/{LAST}/3.html", LOADED, ""),
    "atlas, a patch's place": (f"atlas/layers/{LAST}/3.html", LOADED, ".where"),
    "evaluation": ("evaluation/index.html", LOADED, ""),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind of page."""
    require_axe()
    made = tmp_path_factory.mktemp("pages")
    for name, pixels_HWC in PHOTOGRAPHS.items():
        Image.fromarray(pixels_HWC).save(made / f"{name}.png")
    write_images(made / "images", 4)
    atlas(made / "images", made / "atlas", labels=None)
    _write_explorer(made)
    _write_report(made / "report")
    _write_evaluation(made / "evaluation", made / "cat.png")
    return made


def _write_explorer(folder: Path) -> None:
    beside = SiteAtlas(folder / "atlas", read_atlas(folder / "atlas"), read_records(folder / "atlas"))
    samples = [Sample(folder / f"{name}.png", name, "a photograph") for name in PHOTOGRAPHS]
    options: dict[str, Any] = {"runtime": browser_runtime(), "methods": ["occlusion"], "server": "/"}
    write_site(small_model(), folder / "explorer", samples=samples, atlas=beside, **options)


def _write_report(folder: Path) -> None:
    engine = Engine(small_model())
    results = []
    for name, pixels_HWC in PHOTOGRAPHS.items():
        asked = parse_params({"methods": ["saliency", "occlusion", "grad_cam"], "output": ["array", "overlay"]})
        (reply,) = engine.run([Request(Image.fromarray(pixels_HWC), asked)])
        assert isinstance(reply, Reply), reply
        results.append(ImageResult(f"{name}.png", image.encode_png(pixels_HWC), reply))
    write_results(folder, results, model="small")


def _write_evaluation(folder: Path, picture: Path) -> None:
    folder.mkdir()
    (folder / "map.png").write_bytes(picture.read_bytes())
    write_evaluation_page(
        folder,
        settings=evaluations.settings(),
        summary=evaluations.summary(),
        verdict=evaluations.verdict(),
        records=evaluations.records(),
        maps={"saliency": {evaluations.PICTURES[0]: "map.png"}},
    )


class Plain(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    handler = functools.partial(Plain, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(params=PAGES)
def page(browser: Page, address: str, request: pytest.FixtureRequest) -> Page:
    path, is_there, opener = PAGES[request.param]
    browser.open("about:blank")  # else an address that differs behind the # alone would not be loaded anew
    browser.open(f"{address}/{path}")
    browser.wait_for(is_there)
    if opener:
        browser.click(opener)
        browser.wait_for("document.querySelector('dialog[open]')")
    return browser


def test_axe_finds_nothing(page: Page) -> None:
    for width in (390, 1440):
        for dark in (False, True):
            page.size(width, 900, dark=dark)
            assert violations(page) == [], f"{width} px, {'dark' if dark else 'light'}"


def test_axe_is_at_work(browser: Page) -> None:
    browser.open("data:text/html,<html><title>t</title><main><h1>t</h1><img src=''><p style='color:%23ccc'>pale</p>")
    browser.wait_for("document.querySelector('p')")

    found = {each["id"] for each in violations(browser)}

    assert {"image-alt", "color-contrast", "html-has-lang"} <= found
