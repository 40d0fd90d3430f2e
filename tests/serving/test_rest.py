"""Our own client against a server that says what it should not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from convlens.errors import ServerError
from convlens.serving import rest


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """The address of a server that gives every request this answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b"{}", b'{"predictions": []}', b"\xff"])
def test_a_success_without_a_reply_is_an_error_of_the_server(body: bytes) -> None:
    with answering(200, body) as url, pytest.raises(ServerError, match="no reply of a ConvLens server"):
        rest.explain(url, b"x", model="m")


@pytest.mark.parametrize(
    ("body", "said", "field"),
    [
        (b"<html>Bad gateway</html>", "Bad gateway", None),
        (b'{"code": 502, "message": "no upstream"}', "no upstream", None),
        (b'{"message": "unknown key", "field": "topK"}', "unknown key", "topK"),
        (b"[1]", "[1]", None),
        (b"", "", None),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(body: bytes, said: str, field: str | None) -> None:
    with answering(502, body) as url, pytest.raises(rest.RemoteError) as caught:
        rest.explain(url, b"x", model="m")
    assert caught.value.status == 502
    assert said in caught.value.message
    assert caught.value.field == field


def test_a_proxy_for_the_outside_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with answering(418, b'{"message": "here"}') as url, pytest.raises(rest.RemoteError, match="here"):
        rest.explain(url, b"x", model="m")
