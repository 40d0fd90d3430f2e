"""Pages in a real browser, served from 127.0.0.1 so that whatever they ask for is seen."""

from __future__ import annotations

import functools
import http.server
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (360, 390, 768, 1280, 1600)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"
WITHIN_S = 120
OVER = "the probe is over"

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
  const found = await Promise.all(frames.map(look)).catch((error) => `${error} ${error.stack}`);
  console.info("OVER");  // follows all that the frames complained about
  await fetch("/found", { method: "POST", body: JSON.stringify(found) });
};
</script>"""

_findings: dict[str, queue.SimpleQueue[bytes]] = {}  # of the servers that run, by their addresses


class Recorder(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, remembers what was asked for, and takes what the probe found."""

    def __init__(self, *args: Any, asked: list[str], found: queue.SimpleQueue[bytes], **options: Any) -> None:
        self.asked, self.found = asked, found
        super().__init__(*args, **options)

    def do_POST(self) -> None:
        self.found.put(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response_only(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        self.asked.append(self.path)


class _Server(http.server.ThreadingHTTPServer):
    # Five frames ask at once for all that their pages hold: with the usual queue of 5 some were turned away.
    request_queue_size = 128


@contextmanager
def serve(folder: Path, page: str, *, more: str = "null") -> Iterator[tuple[str, list[str]]]:
    """The address of a probe of ``page`` in the folder, and the list of what is asked for.

    ``more`` is a JavaScript expression of ``page``, the document: what it gives is found beside the rest.
    """
    text = PROBE.replace("OVER", OVER).replace("WIDTHS", json.dumps(WIDTHS)).replace("PAGE", json.dumps(page))
    (folder / "probe.html").write_text(text.replace("MORE", more), encoding="utf-8")
    asked: list[str] = []
    found: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    handler = functools.partial(Recorder, directory=str(folder), asked=asked, found=found)
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        _findings[address] = found
        yield address, asked
        del _findings[address]
        server.shutdown()


def browse(address: str, profile: Path, *flags: str) -> tuple[list[dict[str, Any]], str]:
    """What the probe found, a frame each, and what the browser said on standard error.

    The probe itself says when it is over, however long that takes: a browser that is told to write down the page once
    it is idle does so too early where other processes keep the cores.
    """
    said = profile.with_name(f"{profile.name}.stderr")
    # A browser that is killed leaves the folder of its socket behind.
    temp = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
    with said.open("wb") as output:
        command = [str(BROWSER), *QUIET, *flags, f"--user-data-dir={profile}", f"{address}/probe.html"]
        # In a group of its own, so that all of the browser's processes end together.
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "TMPDIR": temp.name},
        )
    try:
        _wait_until(lambda: not _findings[address].empty() and OVER in _text(said), process, said)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        temp.cleanup()
    found = json.loads(_findings[address].get())
    assert isinstance(found, list), found
    return found, "".join(line for line in _text(said).splitlines(keepends=True) if OVER not in line)


def _text(said: Path) -> str:
    return said.read_text(encoding="utf-8", errors="replace")


def _wait_until(is_over: Callable[[], bool], browser: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not is_over():
        assert browser.poll() is None, f"the browser ended before the page: {_text(said)[-2000:]}"
        assert time.monotonic() < deadline, f"the page has not ended after {WITHIN_S} s: {_text(said)[-2000:]}"
        time.sleep(0.02)


def dump_dom(address: str, profile: Path, *flags: str) -> tuple[str, str]:
    """The page as its scripts leave it, and what the browser said on standard error; of any page, as it is.

    Waits for no promise of the page.
    """
    command = [str(BROWSER), *QUIET, "--virtual-time-budget=20000", *flags, f"--user-data-dir={profile}", "--dump-dom"]
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=WITHIN_S, check=True)
    return done.stdout, done.stderr
