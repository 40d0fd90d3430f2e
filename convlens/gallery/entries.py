"""Ids, labels and thumbnails of a gallery's images: how they lie on disk, and where labels come from."""

from __future__ import annotations

import csv
import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, TypeGuard, overload

from convlens.errors import GalleryError

LabelFrom = Literal["folder"] | Path


@dataclass(frozen=True)
class GalleryEntry:
    """One image. ``thumbnail`` is a JPEG, empty where none is kept."""

    id: str
    label: str
    thumbnail: bytes = b""


@dataclass(frozen=True)
class _Row:
    id: str
    label: str
    offset: int
    length: int


class StoredEntries(Sequence[GalleryEntry]):
    """A gallery's entries in its order; thumbnails stay on disk until they are read."""

    def __init__(self, rows: Sequence[_Row], thumbnails: mmap.mmap | bytes) -> None:
        self._rows = rows
        self._thumbnails = thumbnails

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> GalleryEntry: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[GalleryEntry]: ...
    def __getitem__(self, at: int | slice) -> GalleryEntry | Sequence[GalleryEntry]:
        if isinstance(at, slice):
            return StoredEntries(self._rows[at], self._thumbnails)
        row = self._rows[at]
        return GalleryEntry(row.id, row.label, self._thumbnails[row.offset : row.offset + row.length])


class EntryWriter:
    """Writes one JSON line per entry, and all thumbnails one after the other."""

    # Not Parquet: a server that opens a gallery must not need pyarrow.

    def __init__(self, lines: BinaryIO, thumbnails: BinaryIO) -> None:
        self._lines, self._thumbnails = lines, thumbnails
        self._offset = 0
        self._ids: set[str] = set()

    def add(self, entries: Iterable[GalleryEntry]) -> None:
        """Raises GalleryError for an id that was added before."""
        for entry in entries:
            if entry.id in self._ids:
                raise GalleryError(f"id {entry.id!r} is given more than once; ids must be unique")
            self._ids.add(entry.id)
            length = self._thumbnails.write(entry.thumbnail)
            fields = {"id": entry.id, "label": entry.label, "offset": self._offset, "length": length}
            self._lines.write(json.dumps(fields).encode() + b"\n")
            self._offset += length


def read_entries(lines: Path, thumbnails: Path) -> StoredEntries:
    """Raises GalleryError, naming the file, for lines that are no entries or point outside the thumbnails."""
    size = thumbnails.stat().st_size
    with lines.open("rb") as file:
        rows = [_parse(line, number, lines, size) for number, line in enumerate(file, start=1)]
    return StoredEntries(rows, _map(thumbnails))


def _parse(line: bytes, number: int, path: Path, size: int) -> _Row:
    try:
        fields = json.loads(line)
        row = _Row(fields["id"], fields["label"], fields["offset"], fields["length"])
    except (ValueError, KeyError, TypeError) as error:
        raise GalleryError(f"{path}: line {number} is damaged ({error}); build the gallery again") from error
    texts = isinstance(row.id, str) and isinstance(row.label, str)
    if not (texts and _is_count(row.offset) and _is_count(row.length) and row.offset + row.length <= size):
        raise GalleryError(f"{path}: line {number} is no entry, or its thumbnail lies outside; build the gallery again")
    return row


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0  # a bool is an int to isinstance


def _map(path: Path) -> mmap.mmap | bytes:
    # A mapping outlives its file, which is deleted when a gallery is replaced under a running server.
    with path.open("rb") as file:
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def labels_of(ids: Sequence[str], label_from: LabelFrom) -> list[str]:
    """A label for each id: its folder relative to the root, "" at the root; or what a CSV table (file, label) says.

    Raises GalleryError for a table that cannot be read or leaves an image without a label; its other rows are ignored.
    """
    if label_from == "folder":
        return [_folder(id) for id in ids]
    table = _read_table(Path(label_from))
    missing = [id for id in ids if id not in table]
    if missing:
        raise GalleryError(
            f"{label_from} has no label for {len(missing)} of {len(ids)} images, the first is {missing[0]!r}; "
            "write their paths relative to the images' folder, with forward slashes"
        )
    return [table[id] for id in ids]


def _folder(id: str) -> str:
    parent = PurePosixPath(id).parent.as_posix()
    return "" if parent == "." else parent


def _read_table(path: Path) -> Mapping[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a byte-order mark
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise GalleryError(f"{path} cannot be read as a CSV table ({error}); save it as UTF-8") from error
    if not rows or not {"file", "label"} <= rows[0].keys():
        raise GalleryError(f"{path} needs a first line that names the columns file and label, and rows below it")
    return {row["file"]: row["label"] or "" for row in rows if row["file"]}
