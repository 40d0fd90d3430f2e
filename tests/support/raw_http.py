"""HTTP written by hand, to send what no client would."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable
from dataclasses import dataclass

from bad_images import WHOLE

from convlens.torchserve.server import Server

PICTURE = WHOLE["PNG"]
FORM = {"Content-Type": "multipart/form-data; boundary=XX"}
DATA = 'Content-Disposition: form-data; name="data"; filename="a.png"'
PARAMS = 'Content-Disposition: form-data; name="params"'


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes


def post(
    headers: dict[str, str] | str = "",
    body: bytes = PICTURE,
    *,
    path: str = "/predictions/convlens",
    length: str | None = "",
) -> Callable[[str], bytes]:
    """Of a token, the whole message. ``length`` is what Content-Length says, its true value unless given."""
    said = headers if isinstance(headers, str) else "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    count = "" if length is None else f"Content-Length: {length or len(body)}\r\n"

    def written(token: str) -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n{said}{count}\r\n"
        return head.encode("latin-1") + body

    return written


def parts(*each: tuple[str, bytes], close: bool = True) -> bytes:
    """A form's body by its parts' heads and contents."""
    blocks = [b"--XX\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in each]
    return b"".join([*blocks, b"--XX--\r\n" if close else b""])


def send(server: Server, message: Callable[[str], bytes], *, timeout_s: float = 20) -> Reply:
    """The answer as far as its Content-Length goes; TimeoutError without one in time."""
    with socket.create_connection(("127.0.0.1", server.ports.inference), timeout=timeout_s) as line:
        line.sendall(message(server.headers("inference")["Authorization"]))
        with line.makefile("rb") as file:
            status, length = int(file.readline().split()[1]), 0
            while (header := file.readline()) not in (b"\r\n", b""):
                name, _, value = header.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            return Reply(status, file.read(length))


# What reaches the handler, with its code and words of its message.
WRONG: dict[str, tuple[Callable[[str], bytes], int, str]] = {
    "a form without a boundary": (
        post({"Content-Type": "multipart/form-data"}, parts((DATA, PICTURE))), 400, "send a JPEG",
    ),
    "a form of another boundary": (
        post({"Content-Type": "multipart/form-data; boundary=YY"}, parts((DATA, PICTURE))), 422, "the part 'data'",
    ),
    "a form of no parts": (post(FORM, b"--XX--\r\n"), 422, "the part 'data'"),
    "a form of nothing": (post(FORM, b"", length="0"), 422, "the part 'data'"),
    "a form without its end": (post(FORM, parts((DATA, PICTURE), close=False)), 422, "the part 'data'"),
    "a form cut off in its picture": (post(FORM, parts((DATA, PICTURE))[:-200]), 422, "the part 'data'"),
    "a form with line feeds alone": (
        post(FORM, parts((DATA, PICTURE)).replace(b"\r\n", b"\n")), 400, "send a JPEG",
    ),
    "a picture and then rubble of the same name": (
        post(FORM, parts((DATA, PICTURE), (DATA, b"none"))), 400, "send a JPEG",
    ),
    "a form of a thousand parts": (
        post(FORM, parts(*((f'Content-Disposition: form-data; name="p{n}"', b"x") for n in range(1000)))),
        422, "1000 keys; at most 64",
    ),
    "params that are typed as JSON and are none": (
        post(
            FORM,
            parts((DATA, PICTURE), (f"{PARAMS}\r\nContent-Type: application/json", b"{no")),
        ),
        422, "params is not valid JSON",
    ),
    "a body in gzip": (post({"Content-Encoding": "gzip"}, gzip.compress(bytes(2**26))), 415, "content encoding 'gzip'"),
    "a chunked body of three letters": (
        post({"Transfer-Encoding": "chunked"}, b"3\r\nabc\r\n0\r\n\r\n", length=None), 400, "send a JPEG",
    ),
    "Accept in no known letters": (post({"Accept": "\xff\xfe"}), 406, "application/x-npz"),
    "curl's --data-binary": (
        post({"Content-Type": "application/x-www-form-urlencoded"}, b"data=abc&params=%7B%7D"), 415, "-T cat.jpg",
    ),
}  # fmt: skip

# What TorchServe itself answers, with its code: 400 for what is no HTTP, 403 for a path that would break a header, 500
# for a form it cannot take apart.
FRONTEND: dict[str, tuple[Callable[[str], bytes], int]] = {
    "a header with a carriage return": (post("X-A: a\rb\r\n"), 400),
    "a header with a zero": (post("X-A: a\0b\r\n"), 400),
    "a header without a colon": (post("nonsense\r\n"), 400),
    "a header with a space before its colon": (post("X-A : b\r\n"), 400),
    "a header of 100,000 letters": (post({"X-A": "x" * 100_000}), 400),
    "a path of 5,000 letters": (post(path="/predictions/convlens/1.0/" + "x" * 5000), 400),
    "a negative length": (post(length="-1"), 400),
    "a length that is no number": (post(length="NaN"), 400),
    "two lengths": (post({"Content-Length": "3"}), 400),
    "no length": (post(length=None), 400),
    "a length of a hundred gigabytes": (post(length="99999999999"), 413),
    "34 megabytes": (post(body=bytes(34 * 2**20)), 413),
    "chunks of rubble": (post({"Transfer-Encoding": "chunked"}, b"zz\r\nhello\r\n", length=None), 400),
    "a path with a line break": (post(path="/predictions/convlens/1.0/%0D%0AX-A:b"), 403),
    "a path with a zero": (post(path="/predictions/convlens/1.0/%00"), 403),
    "a path that is not quoted": (post(path="/predictions/convlens/1.0/%zz"), 403),
    "a path upwards": (post(path="/predictions/convlens/../../etc/passwd"), 404),
    "no model": (post(path="/predictions/"), 404),
    "an unknown model": (post(path="/predictions/nosuch"), 404),
    "an unknown version": (post(path="/predictions/convlens/9.9"), 404),
    "a part without a name": (
        post(FORM, parts(('Content-Disposition: form-data; filename="a"', PICTURE))), 500,
    ),
    "a part without a head": (post(FORM, parts(("Content-Type: image/png", PICTURE))), 500),
    "a part in an encoding": (post(FORM, parts((f"{DATA}\r\nContent-Transfer-Encoding: base64", PICTURE))), 500),
    "a picture as a form's text": (post({"Content-Type": "application/x-www-form-urlencoded"}), 500),
}  # fmt: skip
