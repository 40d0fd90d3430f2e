"""How rows of float32 lie in files: one .npy, or .safetensors shards.

Both formats are a header and then the rows as they are. Here the header has a fixed length and is filled in last, so
that rows can be appended, and cut off again after a kill.

Rows appended to files that are cut back to what was committed when work goes on after a kill.

Batches on their way to the disk: first the rows, then the line that says they are there.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from convlens.errors import ConvLensError, RequestError

Format = Literal["npy", "safetensors"]
TENSOR = "features"
SHARD_ROWS = 16384
_NPY_BYTES, _SAFETENSORS_BYTES = 128, 256


@dataclass(frozen=True)
class RowLayout:
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


def row_layout(format: str, *, shard_rows: int = SHARD_ROWS) -> RowLayout:
    """Raises RequestError for an unknown format."""
    if format == "npy":
        return RowLayout("npy", None, _NPY_BYTES)
    if format == "safetensors":
        return RowLayout("safetensors", shard_rows, _SAFETENSORS_BYTES)
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


class RowFiles:
    """The feature files of one folder while they grow; ``rows`` are in them."""

    def __init__(self, folder: Path, layout: RowLayout, *, rows: int, dimensions: int) -> None:
        """Goes on behind the first ``rows`` rows; whatever lies behind them is cut off."""
        self._folder, self._layout, self.rows = folder, layout, rows
        self._open: BinaryIO | None = None
        self._open_number = -1
        self._cut(dimensions)

    def append(self, features_ND: NDArray[np.float32]) -> None:
        """Not safe before ``sync``."""
        while len(features_ND):
            number, at = self._layout.place(self.rows)
            room = self._layout.rows - at if self._layout.rows else len(features_ND)
            self._file(number).write(features_ND[:room].astype("<f4", copy=False).tobytes())
            self.rows += min(room, len(features_ND))
            features_ND = features_ND[room:]

    def sync(self) -> None:
        """Have all rows reach the disk."""
        if self._open:
            flush(self._open)

    def close(self) -> None:
        if self._open:
            self._open.close()
        self._open, self._open_number = None, -1

    def _file(self, number: int) -> BinaryIO:
        if self._open is None or number != self._open_number:
            self.sync()
            self.close()
            self._open, self._open_number = (self._folder / self._layout.file_name(number)).open("ab"), number
            if self._open.tell() == 0:
                self._open.write(bytes(self._layout.header_bytes))
        return self._open

    def _cut(self, dimensions: int) -> None:
        kept = self._layout.counts(self.rows) if self.rows else []
        names = [self._layout.file_name(number) for number in range(len(kept))]
        for path in self._folder.glob("features*"):
            if path.name not in names:
                path.unlink()
        for name, rows in zip(names, kept, strict=True):
            _shorten(self._folder / name, self._layout.header_bytes + rows * dimensions * 4)


class Blob:
    """A file of bytes that grows; goes on behind the first ``size`` of them, what lies behind is cut off."""

    def __init__(self, path: Path, size: int) -> None:
        if size:
            _shorten(path, size)
        self._file = path.open("ab" if size else "wb")

    def append(self, data: bytes) -> None:
        """Not safe before ``sync``."""
        self._file.write(data)

    def sync(self) -> None:
        flush(self._file)

    def close(self) -> None:
        self._file.close()


def _shorten(path: Path, size: int) -> None:
    if not path.is_file() or path.stat().st_size < size:
        raise ConvLensError(f"{path} has lost rows that were written; delete {path.parent} to begin anew")
    os.truncate(path, size)


def fill_headers(folder: Path, layout: RowLayout, *, rows: int, dimensions: int) -> None:
    """Say in each file what it holds; files that are not in the folder any more were finished before."""
    first = 0
    for number, count in enumerate(layout.counts(rows)):
        path = folder / layout.file_name(number)
        if path.exists():
            with path.open("r+b") as file:
                file.write(layout.header(count, dimensions, first=first))
                flush(file)
        first += count


def flush(file: BinaryIO) -> None:
    """Have what was written reach the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Have names that were made or changed in a folder reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
