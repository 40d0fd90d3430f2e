"""Rows of float32 in files that grow: one .npy, or .safetensors shards.

Both formats are a header and then the rows as they are. Here the header has a fixed length and is filled in last, so
that rows can be appended, and cut off again after a kill.
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
from convlens.utils.files import sync_file

Format = Literal["npy", "safetensors"]
SHARD_ROWS = 16384
_TENSOR = "features"
# Room for any number of rows. numpy wants its header to be a multiple of 64, so that mapped rows are aligned.
_NPY_BYTES, _SAFETENSORS_BYTES = 128, 256


@dataclass(frozen=True)
class RowLayout:
    """``rows`` go into one file, then the next one begins; None where a single file holds all."""

    format: Format
    rows: int | None
    header_bytes: int

    def file_name(self, file: int) -> str:
        return "features.npy" if self.format == "npy" else f"features-{file:05d}.safetensors"

    def place(self, row: int) -> tuple[int, int]:
        """The number of the file that holds a row, and the row's place there."""
        return divmod(row, self.rows) if self.rows else (0, row)

    def counts(self, rows: int) -> list[int]:
        """How many of so many rows lie in each file."""
        if not self.rows:
            return [rows]
        return [min(self.rows, rows - first) for first in range(0, rows, self.rows)]

    def header(self, rows: int, dimensions: int, *, first: int) -> bytes:
        """The header of a file that holds ``rows`` rows from row ``first`` on."""
        if self.format == "npy":
            return _npy_header(rows, dimensions)
        return _safetensors_header(rows, dimensions, first)


def row_layout(format: str, *, shard_rows: int = SHARD_ROWS) -> RowLayout:
    """The layout of a format. Raises RequestError for an unknown one."""
    if format == "npy":
        return RowLayout("npy", None, _NPY_BYTES)
    if format == "safetensors":
        return RowLayout("safetensors", shard_rows, _SAFETENSORS_BYTES)
    raise RequestError(f"no format {format!r}; there are: {', '.join(get_args(Format))}", field="format")


def _npy_header(rows: int, dimensions: int) -> bytes:
    """numpy's format 1.0: magic, length, a Python dictionary, spaces, a newline."""
    fields = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dimensions}), }}".encode("ascii")
    body = fields.ljust(_NPY_BYTES - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


def _safetensors_header(rows: int, dimensions: int, first: int) -> bytes:
    """Length, a JSON object, and spaces, which the format allows after it."""
    tensor = {"dtype": "F32", "shape": [rows, dimensions], "data_offsets": [0, rows * dimensions * 4]}
    fields = json.dumps({"__metadata__": {"first_row": str(first)}, _TENSOR: tensor}).encode("ascii")
    body = fields.ljust(_SAFETENSORS_BYTES - 8)
    return struct.pack("<Q", len(body)) + body


class RowFiles:
    """The feature files of one folder while they grow; ``rows`` rows have been appended."""

    def __init__(self, folder: Path, layout: RowLayout, *, rows: int, dimensions: int) -> None:
        """Goes on behind the first ``rows`` rows and cuts off whatever lies behind them.

        Raises ConvLensError where rows are missing.
        """
        self._folder, self._layout, self.rows = folder, layout, rows
        self._open: BinaryIO | None = None
        self._open_number = -1
        self._cut(dimensions)

    def append(self, features_ND: NDArray[np.float32]) -> None:
        """Write rows, which are safe on disk only after ``sync``."""
        while len(features_ND):
            number, at = self._layout.place(self.rows)
            # Rows may cross into the next shard.
            room = self._layout.rows - at if self._layout.rows else len(features_ND)
            self._file(number).write(features_ND[:room].astype("<f4", copy=False).tobytes())
            self.rows += min(room, len(features_ND))
            features_ND = features_ND[room:]

    def sync(self) -> None:
        """Have all rows reach the disk."""
        if self._open:
            sync_file(self._open)

    def close(self) -> None:
        if self._open:
            self._open.close()
        self._open, self._open_number = None, -1

    def _file(self, number: int) -> BinaryIO:
        if self._open is None or number != self._open_number:
            # A full shard is flushed before it is left, because ``sync`` reaches only the open one.
            self.sync()
            self.close()
            self._open, self._open_number = (self._folder / self._layout.file_name(number)).open("ab"), number
            if self._open.tell() == 0:
                # Zeros until fill_headers: no reader takes an unfinished file for an array.
                self._open.write(bytes(self._layout.header_bytes))
        return self._open

    def _cut(self, dimensions: int) -> None:
        counts = self._layout.counts(self.rows) if self.rows else []
        names = [self._layout.file_name(number) for number in range(len(counts))]
        for path in self._folder.glob("features*"):
            if path.name not in names:
                path.unlink()
        for name, rows in zip(names, counts, strict=True):
            _shorten(self._folder / name, self._layout.header_bytes + rows * dimensions * 4)


class Blob:
    """A file of bytes that grows; goes on behind the first ``size`` of them and cuts off what lies behind."""

    def __init__(self, path: Path, size: int) -> None:
        if size:
            _shorten(path, size)
        self._file = path.open("ab" if size else "wb")

    def append(self, data: bytes) -> None:
        """Write bytes, which are safe on disk only after ``sync``."""
        self._file.write(data)

    def sync(self) -> None:
        sync_file(self._file)

    def close(self) -> None:
        self._file.close()


def _shorten(path: Path, size: int) -> None:
    if not path.is_file() or path.stat().st_size < size:
        raise ConvLensError(f"{path} has lost rows that were written; delete {path.parent} to start again")
    os.truncate(path, size)


def fill_headers(folder: Path, layout: RowLayout, *, rows: int, dimensions: int) -> None:
    """Write the final header into each file that is still in the folder; the others were finished before a kill."""
    first = 0
    for number, count in enumerate(layout.counts(rows)):
        path = folder / layout.file_name(number)
        if path.exists():
            with path.open("r+b") as file:
                file.write(layout.header(count, dimensions, first=first))
                sync_file(file)
        first += count
