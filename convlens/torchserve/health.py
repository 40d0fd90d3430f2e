"""The tiny inference of a probe: what is asked, and what must come back. By the standard library alone.

A tiny inference: whether a server answers, not only listens.

TorchServe's ``/ping`` says 200 before a model is loaded and while its worker is dead. A container's health check runs
this every few seconds, so it needs the standard library alone (gRPC only where that is asked):
``python -m convlens.torchserve.health``, or ``convlens probe``.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import math
import struct
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit

from convlens.client.addresses import is_loopback
from convlens.client.auth import TokenAuth
from convlens.client.errors import RemoteError, error_from_body, timed_out, unreachable
from convlens.errors import ConvLensError, RequestError, ServerError

# The request_id keeps its lines in the log apart from the clients'.
PARAMS: dict[str, object] = {"topk": 1, "request_id": "probe"}


def grey_png() -> bytes:
    """8×8 pixels of mid-grey (https://www.w3.org/TR/png-3/)."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    rows = (b"\0" + b"\x80" * 8) * 8  # each begins with its filter: none
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def require_predictions(status: int, body: bytes) -> None:
    """RemoteError for a refusal in the server's words, ServerError for a reply without finite predictions."""
    if status != 200:
        raise error_from_body(status, body)
    try:
        found = [float(one["probability"]) for one in json.loads(body)["predictions"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ServerError("an answer that is no reply of a ConvLens model; are model and address right?") from error
    if not found or not all(math.isfinite(probability) for probability in found):
        raise ServerError(f"an answer with the probabilities {found[:5]}; are the weights damaged?")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


URL, MODEL, TIMEOUT_S = "http://127.0.0.1:8080", "convlens", 5.0

# Where TorchServe and `convlens serve` write the tokens, seen from the folder that they were started in.
KEY_FILES = (Path("key_file.json"), Path(".convlens/server/key_file.json"))
_LARGEST = 1_000_000  # bytes of an answer; one class and no map are a few hundred


def probe(url: str, model: str, *, tokens: TokenAuth, timeout_s: float = TIMEOUT_S) -> None:
    """Ask the model entry over REST for the class of a grey picture of 8×8 pixels.

    Raises ConvLensError where the answer is not there within ``timeout_s``, no 200, or without finite predictions.
    """
    at = _parts(url)
    ends, headers = time.monotonic() + timeout_s, {"Content-Type": "application/json"}
    if (token := tokens.header()) is not None:
        headers["Authorization"] = token
    secure = at.scheme == "https"
    connection = (http.client.HTTPSConnection if secure else http.client.HTTPConnection)(at.netloc, timeout=timeout_s)
    body = json.dumps({"data": {"b64": base64.b64encode(grey_png()).decode()}, "params": PARAMS})
    try:
        connection.request("POST", f"{at.path.rstrip('/')}/predictions/{quote(model, safe='')}", body, headers)
        answer = connection.getresponse()
        require_predictions(answer.status, _read(answer, url, timeout_s=timeout_s, ends=ends))
    except TimeoutError as error:
        raise timed_out(url, timeout_s) from error
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(url, str(error)) from error
    finally:
        connection.close()


def probe_all(
    url: str, models: Sequence[str], *, grpc: str = "", key_file: Path | None = None, timeout_s: float = TIMEOUT_S
) -> str:
    """Every model entry, over gRPC where an address is given; one line that says so. ServerError names what failed.

    ``timeout_s`` is for all of them together.
    """
    begun, door = time.monotonic(), grpc or url
    for model in models:
        left = max(0.001, timeout_s - (time.monotonic() - begun))
        try:
            tokens = usual_tokens(door, key_file)
            if grpc:
                from convlens.torchserve.health_grpc import probe_grpc

                probe_grpc(grpc, model, tokens=tokens, timeout_s=left)
            else:
                probe(url, model, tokens=tokens, timeout_s=left)
        except RemoteError as error:
            raise ServerError(f"{model}: {door} says {error.status}: {error.message}") from error
        except ConvLensError as error:
            raise ServerError(f"{model}: {error.message}") from error
    return f"{', '.join(models)}: {door} answers ({(time.monotonic() - begun) * 1e3:.0f} ms)"


def usual_tokens(door: str, key_file: Path | None) -> TokenAuth:
    """That of the key file given, else $CONVLENS_TOKEN, else, for a server on this machine, of a key file at hand."""
    if key_file is not None:
        return TokenAuth(key_file=key_file)
    usual = TokenAuth()
    host = _parts(door if "//" in door else f"http://{door}").hostname or ""
    if usual.header() is not None or not is_loopback(host):
        return usual
    return next((TokenAuth(key_file=path) for path in KEY_FILES if path.is_file()), usual)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every entry is well; otherwise 1, and one line on standard error says why."""
    parser = argparse.ArgumentParser(prog="convlens.torchserve.health", description="A tiny inference per model entry.")
    parser.add_argument("--url", default=URL)
    parser.add_argument("--model", action="append", help=f"may be repeated; default: {MODEL}")
    parser.add_argument("--grpc", default="", help="ask this HOST:PORT over gRPC instead")
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S)
    given = parser.parse_args(arguments)
    return ended(given.url, given.model or [MODEL], grpc=given.grpc, key_file=given.key_file, timeout_s=given.timeout)


def ended(url: str, models: Sequence[str], *, grpc: str, key_file: Path | None, timeout_s: float) -> int:
    """``probe_all`` as a process tells it: a line, and the exit code."""
    try:
        line, stream, code = probe_all(url, models, grpc=grpc, key_file=key_file, timeout_s=timeout_s), sys.stdout, 0
    except ConvLensError as error:
        line, stream, code = error.message, sys.stderr, 1
    stream.write(" ".join(line.split()) + "\n")
    return code


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # brackets without an address, a port that is no number
        pass
    raise RequestError(f"{url!r} should read like {URL}", field="url")


def _read(answer: http.client.HTTPResponse, url: str, *, timeout_s: float, ends: float) -> bytes:
    """A server that sends a byte now and then would hold each wait below the limit, and the probe for ever."""
    body = b""
    while piece := answer.read1(65536):
        body += piece
        if time.monotonic() > ends:
            raise timed_out(url, timeout_s)
        if len(body) > _LARGEST:
            raise ServerError(f"an answer of more than {_LARGEST} bytes; is this the right model and address?")
    return body


if __name__ == "__main__":
    sys.exit(main())
