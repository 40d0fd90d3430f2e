"""The tiny inference of a probe: what is asked, and what must come back. By the standard library alone."""

from __future__ import annotations

import json
import math
import struct
import zlib

from convlens.client.errors import refusal
from convlens.errors import ServerError

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
        raise refusal(status, body)
    try:
        found = [float(one["probability"]) for one in json.loads(body)["predictions"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ServerError("an answer that is no reply of a ConvLens model; are model and address right?") from error
    if not found or not all(math.isfinite(probability) for probability in found):
        raise ServerError(f"an answer with the probabilities {found[:5]}; are the weights damaged?")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
