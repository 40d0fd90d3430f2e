"""The explorer's page without graphs: a real server, behind something that asks for a token, runs the network."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import skimage.data
import torch
from browser_probe import BROWSER
from devtools import Page, open_browser
from explorer_page import DRAWN, READY, choose_method, saved_array, shown_probabilities
from explorer_sites import site_without_graphs
from PIL import Image
from server_fixtures import running
from small_server import NETWORK, built

from convlens import image
from convlens.explain import ForwardPass, run
from convlens.explorer.site import Sample
from convlens.models import Classifier, load
from convlens.torchserve.server import Server
from convlens.types import Attribution

pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH"), pytest.mark.live]

TOKEN, TARGET = "visitor-1234567890", 17
TOLERANCE = 1e-4  # float32 sums in another order, of the largest value


class Front(http.server.SimpleHTTPRequestHandler):
    """The site at ``/`` and the server behind it, as deploy/proxy has them, for machines without nginx."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, behind: Server, **options: Any) -> None:
        self._behind = behind
        super().__init__(*args, **options)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            refusal = {"code": 401, "type": "ProxyError", "message": "no token, or one that is not known"}
            self._answer(401, json.dumps(refusal).encode())
            return
        headers = {"Content-Type": self.headers["Content-Type"], **self._behind.headers("inference")}
        url = self._behind.inference_url + self.path
        answer = httpx.post(url, content=body, headers=headers, timeout=120, trust_env=False)
        self._answer(answer.status_code, answer.content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def network() -> Classifier:
    return load(NETWORK, device="cpu")


@pytest.fixture(scope="module")
def site(network: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    Image.fromarray(skimage.data.chelsea()[:200, :300]).save(folder / "cat.png")
    sample = Sample(folder / "cat.png", "Cat", "a photograph")
    site_without_graphs(network, folder / "site", samples=[sample])
    return folder / "site"


@pytest.fixture(scope="module")
def address(site: Path, small_folder: Path) -> Iterator[str]:
    with running({"convlens": built("convlens", small_folder)}, site.parent / "run") as started:
        handler = functools.partial(Front, behind=started, directory=str(site))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as front:
            threading.Thread(target=front.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{front.server_address[1]}/"
            front.shutdown()


@pytest.fixture(scope="module")
def page(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page after its visitor has given the token that it asked for."""
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(f"{address}#method=saliency&class={TARGET}")
        opened.wait_for("document.querySelector('#notice input[type=password]')")
        refused, opened.complaints[:] = list(opened.complaints), []
        assert all("401" in each for each in refused), refused
        opened.click("#notice input")
        opened.type(TOKEN)
        opened.click("#notice button")
        opened.wait_for(DRAWN)
        yield opened
        assert opened.complaints == []


@pytest.fixture(scope="module")
def x_CHW(site: Path, network: Classifier) -> Any:
    return image.prepare(image.read(site / "samples" / "cat.jpg"), network.spec).x_CHW


def test_the_server_s_predictions_are_shown(page: Page, network: Classifier, x_CHW: Any) -> None:
    logits_K = ForwardPass(network, torch.from_numpy(x_CHW)[None]).logits_NK[0]
    expected_K = torch.from_numpy(logits_K).double().softmax(0).numpy()

    shown = shown_probabilities(page)

    assert len(shown) > 1
    np.testing.assert_allclose(list(shown.values()), expected_K[list(shown)], rtol=1e-4)


@pytest.mark.parametrize("method", ["saliency", "occlusion", "grad_cam_plus_plus"])
def test_the_server_s_maps_are_drawn(page: Page, network: Classifier, x_CHW: Any, method: str) -> None:
    result = run(method, ForwardPass(network, torch.from_numpy(x_CHW)[None]), [TARGET])
    assert isinstance(result, Attribution)

    choose_method(page, method)
    page.wait_for(DRAWN)

    expected_CHW = result.values_NCHW[0]
    np.testing.assert_allclose(saved_array(page), expected_CHW, rtol=0, atol=TOLERANCE * np.abs(expected_CHW).max())


def test_neighbours_come_from_the_server_s_gallery(page: Page) -> None:
    choose_method(page, "neighbours")

    page.wait_for("document.querySelector('.neighbours img')?.naturalWidth")


def test_a_window_is_hidden_in_the_picture_that_the_server_gets(page: Page) -> None:
    before = shown_probabilities(page)

    page.key("h")
    page.wait_for(f"document.querySelectorAll('#predictions .moved').length && {READY}")

    after = shown_probabilities(page)
    assert len(after.keys() & before.keys()) > 1
    assert all(after[index] != before[index] for index in after.keys() & before.keys())
    page.key("Escape")
