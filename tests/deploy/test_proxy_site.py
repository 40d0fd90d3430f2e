"""The explorer that the proxy serves at / , beside the interface: by nginx, with no server behind it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from explorer_sites import network, site_without_graphs
from nginx_proxy import ALICE, INSTALLED, PATH, START, listens, two_free_ports, until

from convlens.explorer.server import headers

pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs nginx and openssl")


ALLOWED = "http://127.0.0.1:8000"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@contextmanager
def running(folder: Path, site: str, *, origins: str = "") -> Iterator[httpx.Client]:
    """A client of the proxy, which writes into the folder."""
    port, metrics_port = two_free_ports()
    (folder / "key_file.json").write_text('{"inference": {"key": "server-token"}}')
    (folder / "clients.conf").write_text(f'"Bearer {ALICE}" alice;\n')
    environment = {
        "PATH": PATH,
        "CONVLENS_KEY_FILE": str(folder / "key_file.json"),
        "PROXY_TLS": "none",
        "PROXY_CLIENTS": str(folder / "clients.conf"),
        "PROXY_DIR": str(folder / "run"),
        "PROXY_LISTEN": f"127.0.0.1:{port}",
        "PROXY_METRICS": f"127.0.0.1:{metrics_port}",
        "PROXY_SITE": site,
        "PROXY_ORIGINS": origins,
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["sh", START], env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        assert until(lambda: listens(port), within_s=20), (folder / "log").read_text()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Not below pytest's folder, which is root's alone: nginx gives its workers to another user."""
    made = Path(tempfile.mkdtemp(prefix="convlens-proxy-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    site_without_graphs(network(folder), folder / "site")
    (folder / "site" / "index.html").write_text("<!DOCTYPE html><title>first</title>", encoding="utf-8")
    (folder / "secret.txt").write_text("secret")
    with running(folder, str(folder / "site"), origins=f"https://first.example {ALLOWED}") as asked:
        yield asked


def test_the_page_is_at_the_root(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "<title>first</title>" in answer.text


@pytest.mark.parametrize(
    ("path", "type"),
    [
        ("/site.json", "application/json"),
        ("/runtime/ort.wasm.min.mjs", "text/javascript"),
        ("/runtime/ort-wasm-simd-threaded.wasm", "application/wasm"),
        ("/samples/", None),
        ("/samples", None),
        ("/nowhere", None),
        ("/../secret.txt", None),
        ("/%2e%2e/secret.txt", None),
        ("/samples%2f..%2f..%2fsecret.txt", None),
    ],
)
def test_files_have_their_types_and_nothing_else_is_there(
    client: httpx.Client, folder: Path, path: str, type: str | None
) -> None:
    answer = client.get(path)
    if type is None:
        assert answer.status_code in (400, 404)
        assert "secret" not in answer.text
    else:
        assert answer.headers["Content-Type"].split(";")[0] == type
        assert answer.content == (folder / "site" / path[1:]).read_bytes()


def test_the_headers_are_those_of_the_explorer_s_own_server(client: httpx.Client) -> None:
    answer = client.get("/site.json")
    for name, value in headers().items():
        assert answer.headers[name] == value


def test_the_interface_beside_it_still_needs_a_token(client: httpx.Client) -> None:
    assert client.post("/predictions/convlens", content=b"0").status_code == 401
    # Past the proxy, and nobody is behind it.
    answer = client.post("/predictions/convlens", content=b"0", headers={"Authorization": f"Bearer {ALICE}"})
    assert answer.status_code == 502


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_sent_to_the_site(client: httpx.Client, method: str) -> None:
    assert client.request(method, "/site.json").status_code in (404, 405)


def test_the_page_of_help_leads_to_the_explorer(client: httpx.Client) -> None:
    assert '<a href="/">' in client.get("/help", headers={"Accept": "text/html"}).text


def cors(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-allow")}


@pytest.mark.parametrize("origin", ["https://first.example", ALLOWED])
def test_a_page_of_an_origin_that_is_named_may_send_a_token(client: httpx.Client, origin: str) -> None:
    answer = client.options("/predictions/convlens", headers={"Origin": origin, **PREFLIGHT})
    assert answer.status_code == 204
    assert cors(answer) == {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": "POST, PUT",
        "access-control-allow-headers": "Authorization, Content-Type",
    }
    assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize("token", [None, ALICE], ids=["without a token", "with one"])
def test_such_a_page_may_read_refusals_as_well(client: httpx.Client, token: str | None) -> None:
    headers = {"Origin": ALLOWED} | ({"Authorization": f"Bearer {token}"} if token else {})
    answer = client.post("/predictions/convlens", content=b"0", headers=headers)
    assert answer.status_code == (502 if token else 401)  # nobody is behind the proxy
    assert cors(answer) == {"access-control-allow-origin": ALLOWED}


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8001", "https://127.0.0.1:8000", f"{ALLOWED}.example", "null"])
def test_a_page_of_any_other_origin_may_neither_ask_nor_read(client: httpx.Client, origin: str) -> None:
    preflight = client.options("/predictions/convlens", headers={"Origin": origin, **PREFLIGHT})
    asked = client.post("/predictions/convlens", content=b"0", headers={"Origin": origin})
    assert (preflight.status_code, asked.status_code) == (401, 401)
    assert cors(preflight) == cors(asked) == {}


def test_the_site_s_own_files_are_for_no_other_origin(client: httpx.Client) -> None:
    assert cors(client.get("/site.json", headers={"Origin": ALLOWED})) == {}


@pytest.mark.parametrize("origin", ["host", "https://host/", "https://host/path", 'https://host";', "ftp://host", "*"])
def test_what_is_no_origin_ends_the_proxy_with_a_reason(folder: Path, origin: str) -> None:
    (folder / "clients.conf").touch()
    environment = {
        **os.environ,
        "PROXY_TLS": "none",
        "PROXY_CLIENTS": str(folder / "clients.conf"),
        "PROXY_DIR": str(folder / "refused"),
        "PROXY_ORIGINS": origin,
    }
    done = subprocess.run(["sh", START], env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert f"PROXY_ORIGINS: {origin} should read like" in done.stderr


def test_without_a_site_the_page_of_help_is_at_the_root(folder: Path) -> None:
    (folder / "none").mkdir()
    with running(folder / "none", "") as client:
        page = client.get("/", headers={"Accept": "text/html"})
        assert (page.status_code, '<a href="/">' in page.text) == (200, False)
        assert "/predictions/convlens" in page.text
        assert "no such path" in client.get("/site.json").json()["message"]
        # Nobody is behind this proxy, and it does not say otherwise.
        for path in ("/", "/v2/health/live"):
            assert client.get(path).status_code == 502


def test_a_folder_without_a_site_ends_the_proxy_with_a_reason(folder: Path) -> None:
    environment = {**os.environ, "PROXY_SITE": "/nowhere", "PROXY_TLS": "none"}
    (folder / "clients.conf").touch()
    environment["PROXY_CLIENTS"] = str(folder / "clients.conf")
    done = subprocess.run(["sh", START], env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "cannot read /nowhere/site.json" in done.stderr
