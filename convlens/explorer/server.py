"""Serves a site on 127.0.0.1, with the headers that isolate a page: only then may its threads share memory."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from convlens.errors import ServerError
from convlens.explorer.site import read_site, server_origin
from convlens.types import no_op

ADDRESS = "127.0.0.1"
_HOSTS = (ADDRESS, "localhost")
_IDLE_S = 60  # after which a connection that is kept open is closed
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    "": "application/octet-stream",
}


def headers(origin: str = "") -> dict[str, str]:
    """What goes with every answer; ``origin`` is that of a server that the page may ask beside its own."""
    connect = f"connect-src 'self' {origin}".rstrip()
    return {
        # https://web.dev/articles/coop-coep: without both there is no SharedArrayBuffer, hence one thread only.
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
        f"img-src 'self' blob: data:; media-src 'self' blob:; {connect}; worker-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'self'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",  # asked for again each time, and mostly answered by "not modified"
    }


@contextmanager
def running(site: Path, *, port: int = 0) -> Iterator[SiteServer]:
    """A server of that site, listening; 0 is any free port.

    Raises RequestError for a folder that holds no site, ServerError for a port that cannot be used.
    """
    origin = server_origin(read_site(site)["server"] or "")
    handler = functools.partial(_Handler, directory=str(site.resolve()), headers=headers(origin))
    try:
        server = SiteServer((ADDRESS, port), handler)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror or error})"
        raise ServerError(
            f"port {port} of {ADDRESS} {reason}; name another by --port, or none for any free one"
        ) from error
    with server:
        yield server


def serve(site: Path, *, port: int = 0, on_ready: Callable[[str], None] = no_op) -> None:
    """Serve the site until Ctrl-C; ``on_ready`` gets its address. Raises as :func:`running`."""
    with running(site, port=port) as server:
        try:
            on_ready(server.url)
            server.serve_forever()
        except KeyboardInterrupt:
            return


class SiteServer(ThreadingHTTPServer):
    """One thread a connection; none of them keeps the process."""

    daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A browser closes connections whenever it likes, and Ctrl-C the one that is just being accepted.
        error = sys.exception()
        closed = isinstance(error, OSError) and error.errno == errno.EBADF
        if not closed and not isinstance(error, (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ConvLens", ""
    timeout = _IDLE_S

    def __init__(self, *args: Any, headers: dict[str, str], directory: str) -> None:
        self._headers = headers
        super().__init__(*args, directory=directory)

    def send_head(self) -> Any:
        # Another site's name may lead here, and its pages must not read this one.
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in _HOSTS:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, f"this is {ADDRESS} alone")
            return None
        if not self._is_inside():
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def list_directory(self, path: Any) -> None:
        """No listings: a folder is not found."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        for name, value in self._headers.items():
            self.send_header(name, value)
        super().end_headers()

    def guess_type(self, path: Any) -> str:
        return _TYPES.get(Path(path).suffix, _TYPES[""])

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what a page loads is not worth a line."""

    def _is_inside(self) -> bool:
        """Whether the path leads to a place in the site, also through links."""
        try:
            return Path(self.translate_path(self.path)).resolve().is_relative_to(self.directory)
        except (OSError, ValueError):  # a name that no file can have
            return False
