"""The REST client against servers whose answers are wrong, late, or right only at the second attempt."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from convlens.client import Client, FrontendError, RemoteError, UnreachableError
from convlens.errors import RequestError, ServerError

QUEUE_FULL = json.dumps({"code": 503, "type": "ServiceUnavailableException", "message": "no worker is free"}).encode()
OVERLOADED = json.dumps(
    {"code": 503, "type": "OverloadError", "message": "busy", "field": None, "request_id": "r"}
).encode()


class Canned(ThreadingHTTPServer):
    """Gives its answers (status, body) one after the other, the last again and again; (0, b"") hangs up instead."""

    def __init__(self, answers: Sequence[tuple[int, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.asked: list[tuple[float, int, dict[str, str]]] = []  # when, from which port, with which headers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Canned

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append((time.monotonic(), self.client_address[1], dict(self.headers)))
        status, body = self.server.answers[min(len(self.server.asked), len(self.server.answers)) - 1]
        if not status:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(*answers: tuple[int, bytes]) -> Iterator[Canned]:
    with Canned(answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


SAFETENSORS_OF = {
    "without metadata": b'{"saliency": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    "of another kind": b'{"__metadata__": {"format": "pt"}}',
    "with a broken header": b'{"__metadata__": ',
    "that is a list": b"[]",
}
NO_REPLIES = [b"", b"<html>", b"[]", b"null", b"{}", b'{"predictions": []}', b"\xff", b"\0" * 8, b"\1\0\0\0\0\0\0\0"]
NO_REPLIES += [len(header).to_bytes(8, "little") + header for header in SAFETENSORS_OF.values()]


@pytest.mark.parametrize("body", NO_REPLIES)
def test_a_success_without_a_reply_is_an_error_of_the_server(body: bytes) -> None:
    with answering((200, body)) as server, Client(server.url) as client:
        with pytest.raises(ServerError, match="no reply of a ConvLens server"):
            client.explain(b"x")
        with pytest.raises(ServerError, match="is no PNG"):
            client.overlay(b"x", "saliency")


@pytest.mark.parametrize(
    ("body", "message", "field"),
    [
        (b"<html>Bad gateway</html>", "Bad gateway", None),
        (b'{"code": 502, "message": "no upstream"}', "no upstream", None),
        (b'{"message": "unknown key", "field": "topK"}', "unknown key", "topK"),
        (b"[1]", "[1]", None),
        (b"[" * 100_000, "[[[", None),
        (b"", "status 502", None),
        (b'{"message": "' + b"a\\n" * 90_000 + b'"}', "a a a", None),
    ],
)
def test_what_a_proxy_says_is_quoted_on_one_line_of_limited_length(
    body: bytes, message: str, field: str | None
) -> None:
    with answering((502, body)) as server, Client(server.url) as client:
        with pytest.raises(FrontendError) as caught:
            client.explain(b"x")
        assert not client.ready()
    assert caught.value.status == 502
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 2500
    assert caught.value.field == field


def test_a_proxy_for_the_outside_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with answering((418, b'{"message": "here"}')) as server:
        for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
            with Client(url) as client, pytest.raises(RemoteError, match="here"):
                client.explain(b"x")


def test_nothing_is_tried_again_by_default() -> None:
    with answering((503, QUEUE_FULL)) as server, Client(server.url) as client:
        with pytest.raises(FrontendError, match=r"no worker is free; its queue is full.*retries=3"):
            client.explain(b"x")
        assert len(server.asked) == 1


@pytest.mark.parametrize("first", [(503, QUEUE_FULL), (503, OVERLOADED), (0, b"")])
def test_a_full_queue_and_a_broken_connection_are_tried_again_after_growing_pauses(first: tuple[int, bytes]) -> None:
    done = (422, b'{"message": "refused", "request_id": ""}')
    with answering(first, first, first, done) as server, Client(server.url, retries=3) as client:
        with pytest.raises(RemoteError, match="refused"):
            client.explain(b"x")
        when = [moment for moment, _, _ in server.asked]
    pauses = [later - earlier for earlier, later in itertools.pairwise(when)]
    assert len(pauses) == 3
    for pause, longest in zip(pauses, (0.1, 0.2, 0.4), strict=True):  # drawn from the upper half
        assert longest / 2 <= pause < longest + 0.5


@pytest.mark.parametrize("status", [400, 404, 422, 500, 504, 507])
def test_what_another_moment_will_not_mend_is_not_tried_again(status: int) -> None:
    body = json.dumps({"message": "no", "request_id": ""}).encode()
    with answering((status, body)) as server, Client(server.url, retries=5) as client:
        with pytest.raises(RemoteError):
            client.explain(b"x")
        assert len(server.asked) == 1


def test_no_try_begins_after_the_time_is_up() -> None:
    with answering((503, QUEUE_FULL)) as server, Client(server.url, retries=1000, timeout_s=0.6) as client:
        began = time.monotonic()
        with pytest.raises(FrontendError):
            client.explain(b"x")
        assert time.monotonic() - began < 10, "a thousand tries would take minutes"
        assert 2 <= len(server.asked) < 10
        assert server.asked[-1][0] - began < 0.6


def test_a_connection_that_breaks_is_unreachable() -> None:
    with answering((0, b"")) as server, Client(server.url) as client, pytest.raises(UnreachableError):
        client.predict(b"x")


def test_connections_are_kept_open_and_headers_carry_form_token_and_time() -> None:
    with answering((418, b"")) as server, Client(server.url, token="secret") as client:
        for _ in range(3):
            with pytest.raises(RemoteError):
                client.explain(b"x")
        assert len({port for _, port, _ in server.asked}) == 1
        headers = {name.lower(): value for name, value in server.asked[0][2].items()}
    assert headers["accept"] == "application/vnd.safetensors"
    assert headers["authorization"] == "Bearer secret"
    assert headers["x-request-start"].startswith("t=")
    assert abs(float(headers["x-request-start"][2:]) - time.time()) < 5


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://[::1", ""])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(RequestError, match=r"is no URL|should read like http://127"):
        Client(url)


def test_a_password_in_the_url_is_refused_without_being_repeated() -> None:
    with pytest.raises(RequestError) as caught:
        Client("http://user:hunter2@127.0.0.1:8080")
    assert "hunter2" not in caught.value.message
