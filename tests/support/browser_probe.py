"""Pages in a real browser, served from 127.0.0.1 so that whatever they ask for is seen."""

from __future__ import annotations

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (360, 390, 768, 1280, 1600)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=20000",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"

# A page around another, in one frame a width, that writes down what it finds. Luminance and contrast as in WCAG 2.1.
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
const settled = (image) => image?.decode().catch(() => null);
async function look(frame) {
  const view = frame.contentWindow, page = view.document;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const words = [...page.body.querySelectorAll("*")].filter((element) => !["SCRIPT", "STYLE"].includes(element.tagName)
    && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  const images = [...page.images];
  for (const image of images) image.loading = "eager";
  await Promise.all(images.map(settled));
  page.querySelector(".enlarge")?.click();
  await settled(page.querySelector("dialog[open] > img"));
  return {
    width: view.innerWidth, needed: page.documentElement.scrollWidth, paper: luminance(paper(view, page.body)),
    images: images.length, broken: images.filter((image) => !image.naturalWidth).length,
    faint: words.filter((element) => contrast(view, element) < 4.5).map((element) => element.outerHTML.slice(0, 80)),
    buttons: page.querySelectorAll("main .enlarge > img").length,
    enlarged: page.querySelector("dialog[open] > img")?.naturalWidth || 0,
    more: MORE,
  };
}
const frames = WIDTHS.map((width) => {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:900px;border:0`;
  frame.src = PAGE;
  document.body.append(frame);
  return frame;
});
onload = async () => {
  const found = document.createElement("pre");
  found.textContent = JSON.stringify(await Promise.all(frames.map(look)));
  document.body.replaceChildren(found);
};
</script>"""


class Recorder(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and remembers what was asked for."""

    def __init__(self, *args: Any, asked: list[str], **options: Any) -> None:
        self.asked = asked
        super().__init__(*args, **options)

    def log_message(self, format: str, *args: Any) -> None:
        self.asked.append(self.path)


@contextmanager
def serve(folder: Path, page: str, *, more: str = "null") -> Iterator[tuple[str, list[str]]]:
    """The address of a probe of ``page`` in the folder, and the list of what is asked for.

    ``more`` is a JavaScript expression of ``page``, the document: what it gives is found beside the rest.
    """
    text = PROBE.replace("WIDTHS", json.dumps(WIDTHS)).replace("PAGE", json.dumps(page)).replace("MORE", more)
    (folder / "probe.html").write_text(text, encoding="utf-8")
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
