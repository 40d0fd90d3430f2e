"""The journal as Parquet tables: which image each row of features belongs to, and which images have no row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convlens.features.journal import ImageRow, read_journal
from convlens.features.row_files import RowLayout
from convlens.utils.files import sync_file

ROWS, UNREADABLE, THUMBNAILS = "manifest.parquet", "unreadable.parquet", "thumbnails.bin"

# Column -> type, in Arrow's words.
_ROW_COLUMNS = {
    "row": "int64",
    "file": "string",
    "file_row": "int64",
    "position": "int64",
    "id": "string",
    "bytes": "int64",
    "sha256": "string",
    "width": "int32",
    "height": "int32",
    "top1": "int32",
    "label": "string",
    "probability": "float",
}
# Where thumbnails are kept: each one's size in bytes.
_THUMBNAIL_COLUMN = {"thumbnail": "int64"}
_FAILURE_COLUMNS = {"position": "int64", "id": "string", "reason": "string"}
_ROW_GROUP = 65536  # rows in memory at a time


def write_tables(folder: Path, journal: Path, layout: RowLayout, labels: Sequence[str], *, thumbnails: bool) -> None:
    """Both tables, in the order of the images; the same journal makes the same bytes."""
    # One pass over the journal for each table, so that only a row group is in memory.
    columns = _ROW_COLUMNS | _THUMBNAIL_COLUMN if thumbnails else _ROW_COLUMNS
    rows = (row for entry in read_journal(journal) for row in entry.rows)
    cells = (_cells(number, row, layout, labels) for number, row in enumerate(rows))
    failures = (failure for entry in read_journal(journal) for failure in entry.failures)
    _write(folder / ROWS, columns, (values[: len(columns)] for values in cells))
    _write(folder / UNREADABLE, _FAILURE_COLUMNS, ((each.position, each.id, each.reason) for each in failures))


def _cells(number: int, row: ImageRow, layout: RowLayout, labels: Sequence[str]) -> tuple[Any, ...]:
    """The values of all columns, the thumbnail's last."""
    file, file_row = layout.place(number)
    label = labels[row.top1] if labels else ""  # a network without classes
    place = (number, layout.file_name(file), file_row, row.position)
    facts = (row.id, row.size, row.sha256, row.width, row.height, row.top1, label, row.probability)
    return (*place, *facts, row.thumbnail)


def read_rows(folder: Path, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Those columns of a complete folder's table of rows, row by row."""
    return _read(folder / ROWS, columns)


def read_failures(folder: Path) -> Iterator[tuple[str, str]]:
    """Id and reason of each image that has no row."""
    return ((id, reason) for id, reason in _read(folder / UNREADABLE, ("id", "reason")))


def _read(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=list(columns)):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def _write(path: Path, columns: Mapping[str, str], rows: Iterator[tuple[Any, ...]]) -> None:
    import pyarrow  # here, because a server that opens a gallery must not load it
    from pyarrow import parquet

    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in columns.items()])
    with path.open("wb") as file:
        with parquet.ParquetWriter(file, schema) as writer:
            while group := list(itertools.islice(rows, _ROW_GROUP)):
                arrays = [
                    pyarrow.array(values, field.type)
                    for values, field in zip(zip(*group, strict=True), schema, strict=True)
                ]
                writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
        sync_file(file)
