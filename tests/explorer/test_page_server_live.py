"""The explorer's page without graphs: a real server runs the network, behind the page's own or on another origin."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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
from nginx_proxy import ALICE, INSTALLED, running_proxy
from PIL import Image
from server_fixtures import running
from small_server import NETWORK, built

from convlens import image
from convlens.explain import ForwardPass, run
from convlens.explorer import server as site_server
from convlens.explorer.site import Sample
from convlens.models import Classifier, load
from convlens.torchserve import server as torchserve
from convlens.torchserve import server_config
from convlens.torchserve.launcher import ServerSettings
from convlens.torchserve.server import Server
from convlens.torchserve.server_config import Ports
from convlens.types import Attribution

pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH"), pytest.mark.live]

TOKEN, TARGET = ALICE, 17
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
def write(network: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Path]:
    """Writes a site whose page asks the server at that address, with a photograph of a cat."""
    photograph = tmp_path_factory.mktemp("photographs") / "cat.png"
    Image.fromarray(skimage.data.chelsea()[:200, :300]).save(photograph)

    def written(folder: Path, server: str) -> Path:
        samples = [Sample(photograph, "Cat", "a photograph")]
        site_without_graphs(network, folder, server=server, samples=samples)
        return folder

    return written


@pytest.fixture(scope="module")
def elsewhere() -> Ports:
    """Ports of pages that ask a TorchServe elsewhere: ``inference`` one with tokens, ``management`` one without.

    Two, because a browser keeps its connections, and what closed its port goes on to answer on those.
    """
    return server_config.free_ports()


@pytest.fixture(scope="module")
def server(small_folder: Path, elsewhere: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With tokens, as everywhere; it lets the page elsewhere ask as far as TorchServe can."""
    allowed = {
        "cors_allowed_origin": f"http://127.0.0.1:{elsewhere.inference}",
        "cors_allowed_headers": "Authorization",
    }
    run_dir = tmp_path_factory.mktemp("server") / "run"
    with running({"convlens": built("convlens", small_folder)}, run_dir, **allowed) as started:
        yield started


Write = Callable[[Path, str], Path]


@contextmanager
def beside_its_server(behind: Server, write: Write, folder: Path) -> Iterator[str]:
    """By a stand-in of the proxy, for machines without nginx."""
    handler = functools.partial(Front, behind=behind, directory=str(write(folder / "site", "/")))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as front:
        threading.Thread(target=front.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{front.server_address[1]}/"
        front.shutdown()


@contextmanager
def behind_the_proxy(behind: Server, write: Write, folder: Path) -> Iterator[str]:
    site = write(folder / "site", "/")
    with running_proxy(behind, PROXY_TLS="none", PROXY_SITE=str(site)) as proxy:
        yield f"http://127.0.0.1:{proxy.port}/"


@contextmanager
def on_another_origin_than_the_proxy(behind: Server, write: Write, folder: Path) -> Iterator[str]:
    port = server_config.free_ports().inference
    with running_proxy(behind, PROXY_TLS="none", PROXY_ORIGINS=f"http://127.0.0.1:{port}") as proxy:
        site = write(folder / "site", f"http://127.0.0.1:{proxy.port}")
        with served(site, port) as address:
            yield address


@contextmanager
def served(site: Path, port: int) -> Iterator[str]:
    with site_server.running(site, port=port) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving.url
        serving.shutdown()


NEEDS_NGINX = pytest.mark.skipif(not INSTALLED, reason="needs nginx and openssl")
PLACES: list[Any] = [
    beside_its_server,
    pytest.param(behind_the_proxy, marks=NEEDS_NGINX),
    pytest.param(on_another_origin_than_the_proxy, marks=NEEDS_NGINX),
]


@pytest.fixture(scope="module", params=PLACES, ids=lambda place: place.__name__)
def address(request: pytest.FixtureRequest, server: Server, write: Write) -> Iterator[str]:
    open_place: Callable[..., AbstractContextManager[str]] = request.param
    # Not below pytest's folder, which is root's alone: nginx gives its workers to another user.
    folder = Path(tempfile.mkdtemp(prefix="convlens-explorer-"))
    folder.chmod(0o711)
    with open_place(server, write, folder) as found:
        yield found
    shutil.rmtree(folder)


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
def x_CHW(write: Write, network: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Any:
    site = write(tmp_path_factory.mktemp("explorer") / "site", "/")
    return image.prepare(image.read(site / "samples" / "cat.jpg"), network.spec).x_CHW


def test_the_server_s_predictions_are_shown(page: Page, network: Classifier, x_CHW: Any) -> None:
    logits_K = ForwardPass(network, torch.from_numpy(x_CHW)[None]).logits_NK[0]
    expected_K = torch.from_numpy(logits_K).double().softmax(0).numpy()

    shown = shown_probabilities(page)

    assert len(shown) > 1
    np.testing.assert_allclose(list(shown.values()), expected_K[list(shown)], rtol=1e-4)


@pytest.mark.parametrize("method", ["saliency", "guided_backprop", "occlusion"])
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


# ---- a server that is asked directly, from another origin


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def without_tokens(small_folder: Path, elsewhere: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = ServerSettings(threads=1, overrides={"cors_allowed_origin": f"http://127.0.0.1:{elsewhere.management}"})
    archives = {"convlens": built("convlens", small_folder)}
    run_dir = tmp_path_factory.mktemp("open") / "run"
    with torchserve.running(archives=archives, run_dir=run_dir, auth=False, settings=settings) as started:
        yield started


SAID = "!document.getElementById('notice').hidden && document.getElementById('notice').textContent"


def test_a_server_without_tokens_explains_for_the_page_that_it_allows(
    browser: Page,
    without_tokens: Server,
    write: Write,
    elsewhere: Ports,
    x_CHW: Any,
    network: Classifier,
    tmp_path: Path,
) -> None:
    result = run("saliency", ForwardPass(network, torch.from_numpy(x_CHW)[None]), [TARGET])
    assert isinstance(result, Attribution)

    with served(write(tmp_path / "site", without_tokens.inference_url), elsewhere.management) as address:
        browser.complaints.clear()
        browser.open(f"{address}#method=saliency&class={TARGET}")
        browser.wait_for(DRAWN)

    expected_CHW = result.values_NCHW[0]
    np.testing.assert_allclose(saved_array(browser), expected_CHW, rtol=0, atol=TOLERANCE * np.abs(expected_CHW).max())
    assert browser.complaints == []


def test_a_page_that_the_server_does_not_allow_says_what_to_set(
    browser: Page, without_tokens: Server, write: Write, tmp_path: Path
) -> None:
    with served(write(tmp_path / "site", without_tokens.inference_url), 0) as address:
        browser.open(address)
        said = browser.wait_for(SAID)

    origin = address.rstrip("/")
    assert without_tokens.inference_url in said
    assert f"cors_allowed_origin={origin} in TorchServe's config.properties" in said
    assert f"PROXY_ORIGINS={origin}" in said


def test_a_token_for_another_origin_s_torchserve_leads_to_the_proxy(
    browser: Page, server: Server, write: Write, elsewhere: Ports, tmp_path: Path
) -> None:
    with served(write(tmp_path / "site", server.inference_url), elsewhere.inference) as address:
        browser.open(address)
        browser.wait_for("document.querySelector('#notice input[type=password]')")
        browser.click("#notice input")
        browser.type(server.headers("inference")["Authorization"].removeprefix("Bearer "))
        browser.click("#notice button")
        said = browser.wait_for(f"{SAID}.includes('PROXY_ORIGINS') && {SAID}")

    assert f"PROXY_ORIGINS=http://127.0.0.1:{elsewhere.inference}" in said
    assert "cors_allowed_origin" not in said
