"""The report in a real browser, served from 127.0.0.1 so that whatever it asks for is seen."""

from __future__ import annotations

import functools
import html
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convlens.report import ReportRow, render, write
from convlens.types import Attribution, Explanation, Meta, Neighbour, Neighbourhood, Prediction, Reply

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH"), pytest.mark.slow]
WIDTHS = (360, 390, 768, 1280, 1600)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=20000",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"
LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft_" * 2

# A page around the report, in one frame a width, that writes down what it finds. Luminance and contrast as in WCAG 2.1.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,"><body><script>
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const luminance = (colour) => numbers(colour).slice(0, 3)
  .map((part) => part / 255).map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
  .reduce((sum, part, i) => sum + part * [.2126, .7152, .0722][i], 0);
const opaque = (colour) => numbers(colour).length < 4 || numbers(colour)[3] > 0;
function paper(view, element) {
  for (; element; element = element.parentElement) {
    const colour = view.getComputedStyle(element).backgroundColor;
    if (opaque(colour)) return colour;
  }
  return "rgb(255, 255, 255)";
}
function contrast(view, element) {
  const pair = [view.getComputedStyle(element).color, paper(view, element)].map(luminance).sort((a, b) => b - a);
  return (pair[0] + .05) / (pair[1] + .05);
}
function look(frame) {
  const view = frame.contentWindow, page = view.document;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const words = [...page.body.querySelectorAll("*")].filter((element) => !["SCRIPT", "STYLE"].includes(element.tagName)
    && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  const images = [...page.images];
  page.querySelector(".enlarge")?.click();
  return {
    width: view.innerWidth, needed: page.documentElement.scrollWidth, paper: luminance(paper(view, page.body)),
    images: images.length, broken: images.filter((image) => !image.naturalWidth).length,
    faint: words.filter((element) => contrast(view, element) < 4.5).map((element) => element.outerHTML.slice(0, 80)),
    buttons: page.querySelectorAll("main .enlarge > img").length,
    enlarged: page.querySelector("dialog[open] > img")?.naturalWidth || 0,
  };
}
const frames = WIDTHS.map((width) => {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:900px;border:0`;
  frame.src = "report.html";
  document.body.append(frame);
  return frame;
});
onload = () => {
  const found = document.createElement("pre");
  found.textContent = JSON.stringify(frames.map(look));
  document.body.replaceChildren(found);
};
</script>"""


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


class Recorder(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and remembers what was asked for."""

    def __init__(self, *args: Any, asked: list[str], **options: Any) -> None:
        self.asked = asked
        super().__init__(*args, **options)

    def log_message(self, format: str, *args: Any) -> None:
        self.asked.append(self.path)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    folder = tmp_path / "site"
    folder.mkdir()
    words = {"occlusion": ("what falls.", "the rest."), "neighbours": ("what is near.", "why.")}
    rows = [row("cat.png"), row(f"<script>console.error('escaped')</script>{LONG}.png")]
    page = render(rows=rows, title=f"A title {LONG}", model=LONG, descriptions=words, notes=(LONG,))
    write(folder / "report.html", page)
    (folder / "probe.html").write_text(PROBE.replace("WIDTHS", json.dumps(WIDTHS)), encoding="utf-8")
    asked: list[str] = []
    handler = functools.partial(Recorder, directory=str(folder), asked=asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def browse(address: str, profile: Path, *flags: str) -> tuple[list[dict[str, Any]], str]:
    """What the probe found, a frame each, and what the browser said on standard error."""
    command = [str(BROWSER), *QUIET, *flags, f"--user-data-dir={profile}", "--dump-dom", f"{address}/probe.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found.group(1))), done.stderr


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
