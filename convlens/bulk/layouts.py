"""How rows of float32 lie in files: one .npy, or .safetensors shards.

Both formats are a header and then the rows as they are. Here the header has a fixed length and is filled in last, so
that rows can be appended, and cut off again after a kill.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Literal, get_args

from convlens.errors import RequestError

Format = Literal["npy", "safetensors"]

TENSOR = "features"
SHARD_ROWS = 16384
_NPY_BYTES, _SAFETENSORS_BYTES = 128, 256


@dataclass(frozen=True)
class Layout:
    """``rows`` go into a file, then the next one begins; None where one file holds all."""

    format: Format
    rows: int | None
    header_bytes: int

    def file_name(self, file: int) -> str:
        return "features.npy" if self.format == "npy" else f"features-{file:05d}.safetensors"

    def place(self, row: int) -> tuple[int, int]:
        """The number of the file that a row lies in, and its row there."""
        return divmod(row, self.rows) if self.rows else (0, row)

    def counts(self, rows: int) -> list[int]:
        """How many of that many rows lie in each file."""
        if not self.rows:
            return [rows]
        return [min(self.rows, rows - first) for first in range(0, rows, self.rows)]

    def header(self, rows: int, dimensions: int, *, first: int) -> bytes:
        """What a file begins with that holds ``rows`` rows from row ``first`` on."""
        if self.format == "npy":
            return _npy_header(rows, dimensions)
        return _safetensors_header(rows, dimensions, first)


def layout(format: str, *, shard_rows: int = SHARD_ROWS) -> Layout:
    """Raises RequestError for an unknown format."""
    if format == "npy":
        return Layout("npy", None, _NPY_BYTES)
    if format == "safetensors":
        return Layout("safetensors", shard_rows, _SAFETENSORS_BYTES)
    raise RequestError(f"no format {format!r}; there are: {', '.join(get_args(Format))}", field="format")


def _npy_header(rows: int, dimensions: int) -> bytes:
    """Version 1.0 of numpy's format: magic, length, a Python dictionary, spaces, a line's end."""
    fields = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dimensions}), }}".encode("ascii")
    body = fields.ljust(_NPY_BYTES - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


def _safetensors_header(rows: int, dimensions: int, first: int) -> bytes:
    """Length, a JSON object, and spaces, which the format allows after it."""
    tensor = {"dtype": "F32", "shape": [rows, dimensions], "data_offsets": [0, rows * dimensions * 4]}
    fields = json.dumps({"__metadata__": {"first_row": str(first)}, TENSOR: tensor}).encode("ascii")
    body = fields.ljust(_SAFETENSORS_BYTES - 8)
    return struct.pack("<Q", len(body)) + body
