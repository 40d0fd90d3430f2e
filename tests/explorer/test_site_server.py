"""What the explorer's server gives over a real socket, and what it keeps to itself."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from explorer_sites import LABELS, browser_runtime, network, site_without_graphs

from convlens.explorer import server as site_server

# As in a terminal, also where the tests run in the background, in which a shell has SIGINT ignored.
IN_FOREGROUND = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
RUN = f"{IN_FOREGROUND}; from convlens.cli.main import main; main()"
COMMAND = [sys.executable, "-c", RUN, "explore", "--no-open"]
SERVER = "https://host.example:8443"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    site_without_graphs(network(folder), folder / "site", server=f"{SERVER}/predictions/cats")
    (folder / "secret.txt").write_text("secret")
    (folder / "site" / "link.txt").symlink_to(folder / "secret.txt")
    (folder / "site" / "graphs").mkdir()
    (folder / "site" / "graphs" / "scores.onnx").write_bytes(b"graph")
    return folder / "site"


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[str]
    port: int


@contextmanager
def running(*arguments: object, **environment: str) -> Iterator[Served]:
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+)/ ", line)
        assert found, line
        yield Served(process, int(found[1]))
    finally:
        process.kill()
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[Served]:
    with running("--serve", site) as started:
        yield started


def ask(
    served: Served, path: str, *, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body; the path is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "type"),
    [
        ("/site.json", "application/json"),
        ("/runtime/ort.wasm.min.mjs", "text/javascript; charset=utf-8"),
        ("/runtime/ort-wasm-simd-threaded.wasm", "application/wasm"),
        ("/graphs/scores.onnx", "application/octet-stream"),
    ],
)
def test_a_file_comes_whole_with_its_type(served: Served, site: Path, path: str, type: str) -> None:
    status, headers, body = ask(served, path)
    assert (status, headers["Content-Type"]) == (200, type)
    assert body == (site / path[1:]).read_bytes()


@pytest.mark.parametrize("path", ["/site.json", "/runtime/ort.wasm.min.mjs", "/nowhere"])
def test_every_answer_isolates_the_page(served: Served, path: str) -> None:
    _, headers, _ = ask(served, path)
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_policy_lets_the_page_ask_its_own_two_servers_only(
    served: Served,
) -> None:
    _, headers, _ = ask(served, "/site.json")
    rules = dict(rule.strip().split(" ", 1) for rule in headers["Content-Security-Policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert rules["connect-src"] == f"'self' {SERVER}"
    assert "unsafe-inline" not in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path",
    ["/../secret.txt", "/%2e%2e/secret.txt", "/graphs/../../secret.txt", "/graphs/%2e%2e%2f%2e%2e%2fsecret.txt",
     "//secret.txt", "/link.txt", "/..%5csecret.txt", "/%00", "/" + "x" * 5000],
)  # fmt: skip
def test_no_path_leads_out_of_the_site(served: Served, path: str) -> None:
    status, _, body = ask(served, path)
    assert status == 404
    assert b"secret" not in body


@pytest.mark.parametrize("path", ["/graphs/", "/runtime/", "/samples/"])
def test_a_folder_is_not_listed(served: Served, path: str) -> None:
    status, _, body = ask(served, path)
    assert status == 404
    assert b"href" not in body


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example"])
def test_a_name_that_only_leads_here_gets_nothing(served: Served, host: str) -> None:
    status, _, body = ask(served, "/site.json", Host=host)
    assert status == 421
    assert b"preprocessing" not in body


def test_nothing_can_be_sent(served: Served) -> None:
    assert ask(served, "/site.json", method="POST")[0] == 501
    assert ask(served, "/site.json", method="HEAD")[2] == b""


def test_a_file_that_did_not_change_is_not_sent_again(served: Served) -> None:
    _, headers, _ = ask(served, "/runtime/ort.wasm.min.mjs")
    status, _, body = ask(served, "/runtime/ort.wasm.min.mjs", **{"If-Modified-Since": headers["Last-Modified"]})
    assert (status, body) == (304, b"")


def test_only_this_machine_can_ask(served: Served) -> None:
    listening = [each.laddr for each in psutil.Process(served.process.pid).net_connections() if each.status == "LISTEN"]
    assert listening == [("127.0.0.1", served.port)]


def test_a_port_that_is_taken_is_named(site: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*COMMAND, "--serve", str(site), "--port", port], capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 2
    assert f"port {port} of 127.0.0.1 is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_folder_the_site_is_served_from_one_that_goes_with_the_command(tmp_path: Path) -> None:
    runtime = browser_runtime().parent
    shutil.copytree(runtime, tmp_path / "cache" / runtime.name)
    (tmp_path / "temporary").mkdir()
    model = network(tmp_path).source
    environment = {"CONVLENS_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "temporary")}
    with running(model, "--methods", "none", "--server", "/", **environment) as started:
        assert json.loads(ask(started, "/site.json")[2])["model"]["labels"] == list(LABELS)
        assert list((tmp_path / "temporary").glob("convlens-*/site"))
        started.process.terminate()
        _, stderr = started.process.communicate(timeout=20)
    assert "Traceback" not in stderr
    assert not list((tmp_path / "temporary").glob("convlens-*"))


def test_a_connection_that_ctrl_c_closes_as_it_begins_is_not_worth_a_word(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.close()
    with site_server.running(site) as server:
        server.process_request_thread(ours, ("127.0.0.1", 1))
    assert capsys.readouterr().err == ""


def test_ctrl_c_ends_it_without_a_word_of_python(served: Served) -> None:
    # The last test of this server; a connection that is kept open does not hold it.
    with socket.create_connection(("127.0.0.1", served.port), timeout=20):
        served.process.send_signal(signal.SIGINT)
        _, stderr = served.process.communicate(timeout=20)
    assert served.process.returncode == 0
    assert "Traceback" not in stderr
