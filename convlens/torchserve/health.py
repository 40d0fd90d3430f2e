"""The health check: one tiny inference per model entry, because a server that listens may still not answer.

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
import re
import struct
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit

from convlens.client.auth import TokenAuth, is_loopback
from convlens.client.errors import RemoteError, error_from_body, timed_out, unreachable
from convlens.errors import ConvLensError, RequestError, ServerError

URL, MODEL, TIMEOUT_S = "http://127.0.0.1:8080", "convlens", 5.0
# The request_id keeps its lines in the log apart from the clients'.
PARAMS: dict[str, object] = {"topk": 1, "request_id": "probe"}
# Where TorchServe and `convlens serve` write the tokens, seen from the folder that they were started in.
_KEY_FILES = (Path("key_file.json"), Path(".convlens/server/key_file.json"))
_CHANNELS = re.compile(rb"the model takes (\d{1,4}) channels")  # how images of others are refused
_LARGEST = 1_000_000  # bytes of an answer; one class and no map are a few hundred


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every entry answers; otherwise 1, and one line on standard error says why."""
    parser = argparse.ArgumentParser(prog="convlens.torchserve.health", description="A tiny inference per model entry.")
    parser.add_argument("--url", default=URL)
    parser.add_argument("--model", action="append", help=f"may be repeated; default: {MODEL}")
    parser.add_argument("--grpc", default="", help="ask this HOST:PORT over gRPC instead")
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S)
    values = parser.parse_args(arguments)
    return exit_code(
        values.url, values.model or [MODEL], grpc=values.grpc, key_file=values.key_file, timeout_s=values.timeout
    )


def exit_code(url: str, models: Sequence[str], *, grpc: str, key_file: Path | None, timeout_s: float) -> int:
    """Writes the line of ``probe_all``, or of its error, to the stream it belongs to; 0 or 1."""
    try:
        line, stream, code = probe_all(url, models, grpc=grpc, key_file=key_file, timeout_s=timeout_s), sys.stdout, 0
    except ConvLensError as error:
        line, stream, code = error.message, sys.stderr, 1
    stream.write(" ".join(line.split()) + "\n")
    return code


def probe_all(
    url: str, models: Sequence[str], *, grpc: str = "", key_file: Path | None = None, timeout_s: float = TIMEOUT_S
) -> str:
    """Probes every model entry, over gRPC where an address is given; one line that says so.

    ``timeout_s`` is for all of them together. ServerError names the entry that failed.
    """
    started, address = time.monotonic(), grpc or url
    for model in models:
        left_s = max(0.001, timeout_s - (time.monotonic() - started))  # a socket takes 0 for "do not wait at all"
        try:
            tokens = default_tokens(address, key_file)
            if grpc:
                from convlens.torchserve.health_grpc import probe_grpc

                probe_grpc(grpc, model, tokens=tokens, timeout_s=left_s)
            else:
                probe(url, model, tokens=tokens, timeout_s=left_s)
        except RemoteError as error:
            raise ServerError(f"{model}: {address} says {error.status}: {error.message}") from error
        except ConvLensError as error:
            raise ServerError(f"{model}: {error.message}") from error
    return f"{', '.join(models)}: {address} answers ({(time.monotonic() - started) * 1e3:.0f} ms)"


def probe(url: str, model: str, *, tokens: TokenAuth, timeout_s: float = TIMEOUT_S) -> None:
    """Asks the model entry over REST for the class of a grey image of 8×8 pixels, in the channels that it takes.

    Raises ConvLensError where the answer is not there within ``timeout_s``, no 200, or without finite predictions.
    """
    parts = _split(url)
    ends, headers = time.monotonic() + timeout_s, {"Content-Type": "application/json"}
    if (token := tokens.header()) is not None:
        headers["Authorization"] = token
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=timeout_s)
    path = f"{parts.path.rstrip('/')}/predictions/{quote(model, safe='')}"

    def ask(data: bytes) -> tuple[int, bytes]:
        body = json.dumps({"data": {"b64": base64.b64encode(data).decode()}, "params": PARAMS})
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, _read(answer, url, timeout_s=timeout_s, ends=ends)

    try:
        require_predictions(*ask_in_channels(ask))
    except TimeoutError as error:
        raise timed_out(url, timeout_s) from error
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(url, str(error)) from error
    finally:
        connection.close()


def ask_in_channels(ask: Callable[[bytes], tuple[int, bytes]]) -> tuple[int, bytes]:
    """Status and body of the answer to a grey PNG or, where the model refuses it, to as many channels as it names."""
    status, body = ask(grey_png())
    named = _CHANNELS.search(body[:_LARGEST]) if status == 400 else None
    return ask(grey_npy(int(named[1]))) if named else (status, body)


def default_tokens(address: str, key_file: Path | None) -> TokenAuth:
    """That of the key file given, else $CONVLENS_TOKEN, else, for a server on this machine, of a key file at hand."""
    if key_file is not None:
        return TokenAuth(key_file=key_file)
    tokens = TokenAuth()
    host = _split(address if "//" in address else f"http://{address}").hostname or ""
    if tokens.header() is not None or not is_loopback(host):
        return tokens
    return next((TokenAuth(key_file=path) for path in _KEY_FILES if path.is_file()), tokens)


def require_predictions(status: int, body: bytes) -> None:
    """RemoteError for a refusal in the server's words, ServerError for a reply without finite predictions."""
    if status != 200:
        raise error_from_body(status, body)
    try:
        reply = json.loads(body)
        probabilities = [float(prediction["probability"]) for prediction in reply["predictions"]]
        has_classes = bool(probabilities) or reply.get("activation") != "none"  # embeddings alone have no predictions
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ServerError("an answer that is no reply of a ConvLens model; are model and address right?") from error
    if has_classes and not (probabilities and all(map(math.isfinite, probabilities))):
        raise ServerError(f"an answer with the probabilities {probabilities[:5]}; are the weights damaged?")


def grey_png() -> bytes:
    """8×8 pixels of mid-grey (https://www.w3.org/TR/png-3/)."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    rows = (b"\0" + b"\x80" * 8) * 8  # each begins with its filter: none
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(name, data) for name, data in chunks)


def grey_npy(channels: int) -> bytes:
    """8×8 pixels of mid-grey in so many channels, as numpy.save writes them (numpy's NEP 1)."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': (8, 8, {channels}), }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\x80" * (64 * channels)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # brackets without an address, a port that is no number
        pass
    raise RequestError(f"{url!r} should read like {URL}", field="url")


def _read(answer: http.client.HTTPResponse, url: str, *, timeout_s: float, ends: float) -> bytes:
    """The whole body; ServerError once ``ends`` has passed or it is too large."""
    # In pieces: a server that sends a byte now and then would keep each single wait below the connection's timeout, and
    # the probe waiting for ever.
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
