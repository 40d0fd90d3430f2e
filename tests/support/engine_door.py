"""A server in a thread of the tests' own: an engine behind Python's HTTP server, as docs/serving.md shows one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from convlens.engine.engine import Engine
from convlens.errors import ConvLensError
from convlens.protocol.encoding import encode_response
from convlens.protocol.requests import parse_request
from convlens.protocol.responses import dumps, error_json
from convlens.types import no_op


@contextmanager
def engine_door(engine: Engine, *, on_request: Callable[[int], None] = no_op) -> Iterator[str]:
    """Its address. ``on_request`` is called with the number of each request, the first is 1, before it is answered."""
    count = 0

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal count
            count += 1
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            on_request(count)
            try:
                call = parse_request(
                    _parts(body, self.headers["Content-Type"]),
                    self.headers,
                    explain=self.path.startswith("/explanations/"),
                )
                answers = engine.run(call.requests)
                if refused := next((one for one in answers if isinstance(one, ConvLensError)), None):
                    raise refused
                response = encode_response(call, answers)
                self._answer(200, response.media, response.body)
            except ConvLensError as error:
                self._answer(error.status, "application/json", dumps(error_json(error)))

        def _answer(self, status: int, media: str, body: str | bytes) -> None:
            data = body.encode() if isinstance(body, str) else body
            self.send_response(status)
            self.send_header("Content-Type", media)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: what it would print is no test's."""

    def _parts(body: bytes, media: str | None) -> dict[str, bytes]:
        """A form's fields by name, as TorchServe hands them over; any other body as it is."""
        if not (media or "").startswith("multipart/form-data"):
            return {"body": body}
        form = message_from_bytes(f"Content-Type: {media}\r\n\r\n".encode() + body, policy=HTTP)
        return {
            str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)
            for part in form.iter_parts()
        }

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
