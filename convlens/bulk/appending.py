"""Rows appended to files that are cut back to what was committed when work goes on after a kill."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from convlens.bulk.layouts import Layout
from convlens.errors import ConvLensError


class RowFiles:
    """The feature files of one folder while they grow; ``rows`` are in them."""

    def __init__(self, folder: Path, layout: Layout, *, rows: int, dimensions: int) -> None:
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


def fill_headers(folder: Path, layout: Layout, *, rows: int, dimensions: int) -> None:
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
