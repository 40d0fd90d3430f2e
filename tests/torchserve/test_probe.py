"""The probe against servers that say what they should not, and what it costs to start."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlens import image
from convlens.errors import ImageError
from convlens.protocol.responses import dumps, error_json
from convlens.torchserve import health
from convlens.torchserve.health import ask_in_channels, grey_npy, grey_png

GOOD = b'{"predictions": [{"index": 1, "label": "x", "probability": 0.25}]}'
HEAVY = {"torch", "numpy", "pydantic", "httpx", "grpc", "PIL"}


class Stranger(BaseHTTPRequestHandler):
    """Answers each request with ``status`` and ``body``, and remembers it."""

    status, body = 200, GOOD
    heard: list[tuple[str, str | None, dict[str, object]]]

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["content-length"]))
        self.heard.append((self.path, self.headers["authorization"], json.loads(sent)))
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(status: int = 200, body: bytes = GOOD) -> Iterator[tuple[str, type[Stranger]]]:
    kind = type("Told", (Stranger,), {"status": status, "body": body, "heard": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", kind
        finally:
            server.shutdown()
            thread.join(10)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key file at hand, no token, and a proxy that must not be asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONVLENS_TOKEN", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and the one line that came with it, on the stream that it belongs to."""
    code = health.main(arguments)
    captured = capsys.readouterr()
    assert bool(captured.out) != bool(captured.err) and bool(captured.out) == (code == 0)
    text = captured.out or captured.err
    assert text.count("\n") == 1 and text.endswith("\n")
    return code, text


def test_the_picture_is_8_by_8_of_mid_grey() -> None:
    picture = Image.open(io.BytesIO(grey_png()))
    picture.load()
    assert picture.size == (8, 8)
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.full((8, 8, 3), 128))


@pytest.mark.parametrize("channels", [1, 2, 6, 1024])
def test_the_picture_of_other_channels_is_read_by_numpy(channels: int) -> None:
    values = np.load(io.BytesIO(grey_npy(channels)), allow_pickle=False)
    np.testing.assert_array_equal(values, np.full((8, 8, channels), 128, np.uint8))


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_a_model_is_asked_in_the_channels_that_it_takes(channels: int) -> None:
    read: list[image.Picture] = []

    def ask(data: bytes) -> tuple[int, bytes]:
        """What a server says of the image: the real decoder, and the error as it goes out."""
        try:
            read.append(image.decode_channels(data, channels))
        except ImageError as error:
            return error.status, dumps(error_json(error)).encode()
        return 200, GOOD

    assert ask_in_channels(ask) == (200, GOOD)
    (picture,) = read
    assert picture.size == (8, 8)


def test_every_entry_is_asked_and_one_that_answers_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    with answering() as (url, server):
        code, text = run(capsys, "--url", url, "--model", "a", "--model", "b_sweep")
    assert code == 0 and text.startswith(f"a, b_sweep: {url} answers")
    assert [path for path, *_ in server.heard] == ["/predictions/a", "/predictions/b_sweep"]
    assert all(sent["params"] == {"topk": 1, "request_id": "probe"} for *_, sent in server.heard)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (503, b'{"code": 503, "type": "ServiceUnavailable", "message": "no\\nworker"}', "says 503: no worker"),
        (400, b'{"code": 400, "message": "Token Authorization failed"}', "CONVLENS_TOKEN"),
        (404, b'{"code": 404, "message": "Model not found: convlens"}', "says 404"),
        (302, b"", "says 302"),
        (200, b"<html>", "no reply of a ConvLens model"),
        (200, b"", "no reply of a ConvLens model"),
        (200, b"[" * 100_000, "no reply of a ConvLens model"),
        (200, b'{"status": "Healthy"}', "no reply of a ConvLens model"),
        (200, b'{"predictions": []}', "damaged"),
        (200, b'{"predictions": [{"probability": NaN}]}', "damaged"),
        (200, b'{"predictions": [{"probability": null}]}', "no reply of a ConvLens model"),
        (200, b" " * 2_000_000, "more than 1000000 bytes"),
    ],
)
def test_anything_but_finite_predictions_is_a_failure_with_one_line_why(
    status: int, body: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(status, body) as (url, _):
        code, text = run(capsys, "--url", url)
    assert code == 1 and text.startswith("convlens: ") and message in text
    assert len(text) < 1000


def test_where_nobody_listens_it_fails_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, text = run(capsys, "--url", f"http://127.0.0.1:{port}")
    assert code == 1 and "is the server running?" in text


@pytest.mark.parametrize("drips", [False, True])
def test_a_server_that_keeps_it_waiting_fails_in_the_time_given(
    drips: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that sends a byte now and then, so that no single wait is long."""
    stop = threading.Event()

    def hold() -> None:
        with listening.accept()[0] as connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" if drips else b"")
            while not stop.wait(0.1):
                if drips:
                    connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=hold)
        thread.start()
        started = time.monotonic()
        code, text = run(capsys, "--url", f"http://127.0.0.1:{listening.getsockname()[1]}", "--timeout", "0.5")
        assert time.monotonic() - started < 2
        stop.set()
        thread.join(10)
    assert code == 1 and "within 0.5 s" in text


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://127.0.0.1", "http://[x", "http://127.0.0.1:port", "http://"])
def test_an_address_that_is_none_is_told_how_to_read(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--url", url) == (1, f"convlens: {url!r} should read like http://127.0.0.1:8080\n")


def test_the_token_comes_from_the_file_given_else_the_environment_else_a_file_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key_file = tmp_path / "given.json"
    key_file.write_text('{"inference": {"key": "of-the-file"}}')
    at_hand = tmp_path / ".convlens" / "server" / "key_file.json"
    with answering() as (url, server):
        run(capsys, "--url", url)
        at_hand.parent.mkdir(parents=True)
        at_hand.write_text('{"inference": {"key": "at-hand"}}')
        run(capsys, "--url", url)
        monkeypatch.setenv("CONVLENS_TOKEN", "of-the-environment")
        run(capsys, "--url", url)
        run(capsys, "--url", url, "--key-file", str(key_file))
    tokens = [token for _, token, _ in server.heard]
    assert tokens == [None, "Bearer at-hand", "Bearer of-the-environment", "Bearer of-the-file"]


def test_a_key_file_at_hand_is_for_servers_on_this_machine_alone(tmp_path: Path) -> None:
    (tmp_path / "key_file.json").write_text('{"inference": {"key": "ours"}}')
    assert health.default_tokens("http://127.0.0.1:8080", None).header() == "Bearer ours"
    assert health.default_tokens("localhost:7070", None).header() == "Bearer ours"
    assert health.default_tokens("https://example.org", None).header() is None
    assert health.default_tokens("192.0.2.1:7070", None).header() is None


def test_a_key_file_that_is_missing_or_damaged_is_a_failure_that_shows_no_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "key_file.json"
    damaged.write_text('{"inference": "s3cret"')
    for path, message in ((tmp_path / "none.json", "cannot read"), (damaged, "holds no inference key")):
        code, text = run(capsys, "--key-file", str(path))
        assert code == 1 and message in text and "s3cret" not in text


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import runpy; runpy.run_module('convlens.torchserve.health')", {*HEAVY, "typer", "rich", "psutil"}),
        ("from convlens.cli.main import build; build(['probe'])", HEAVY),
    ],
)
def test_starting_it_loads_next_to_nothing(code: str, heavy: set[str]) -> None:
    script = f"import sys; {code}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "convlens" in done.stdout.split()
    assert heavy.isdisjoint(done.stdout.split())
