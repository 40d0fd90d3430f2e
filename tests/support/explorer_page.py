"""What a visitor of the explorer's page does and sees, in a browser that devtools drives."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from devtools import Page

from convlens.explorer.server import running

READY = "!document.querySelector('[data-working]') && document.querySelectorAll('#predictions button').length"
DRAWN = f"document.querySelector('.pane .colour-bar') && {READY}"


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address of a site, which its own server serves until the ``with`` ends."""
    with running(site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.url
        server.shutdown()


def visit(page: Page, address: str, state: str = "") -> None:
    """Open the page anew and wait until its first picture is explained; ``state`` is what follows the #."""
    page.complaints.clear()
    page.requests.clear()
    page.size(1440, 1000)
    page.open("about:blank")  # else an address that differs behind the # alone would not be loaded anew
    page.open(address + state)
    page.wait_for(READY)


def choose_method(page: Page, name: str) -> None:
    page.evaluate("document.querySelector('#chips details')?.setAttribute('open', ''), null")
    page.click(f"[data-method='{name}']")
    page.wait_for(f"document.querySelector(\"[data-method='{name}'][aria-pressed='true']\") && {READY}")


def choose_class(page: Page, words: str) -> None:
    """By the keyboard alone."""
    page.key("/")
    page.type(words)
    page.wait_for("!document.getElementById('class-matches').hidden")
    page.key("Enter")
    page.wait_for(READY)


def shown_probabilities(page: Page) -> dict[int, float]:
    """By class, the most probable first; where a window is hidden, those without it."""
    rows = "[...document.querySelectorAll('#predictions button')].filter((row) => row.querySelector('data'))"
    pairs = page.evaluate(f"{rows}.map((row) => [row.dataset.class, row.querySelector('data').value])")
    return {int(index): float(value) for index, value in pairs}


def saved_array(page: Page) -> Any:
    """The .npy file that the page's button gives, taken where it would go to the disk."""
    page.evaluate(
        "window.saved = new Promise((resolve) => { const make = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => { URL.createObjectURL = make;"
        "const reader = new FileReader(); reader.onload = () => resolve(reader.result.split(',')[1]);"
        "reader.readAsDataURL(blob); return make(blob); }; }), null"
    )
    page.click("#save-npy")
    return np.load(io.BytesIO(base64.b64decode(page.evaluate("window.saved"))), allow_pickle=False)
