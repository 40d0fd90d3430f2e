"""CSV files that are there whole or not at all, and in which a spreadsheet finds nothing to run."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from convlens.utils.files import atomic_write

Cell = str | float | int | None
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_csv(path: Path, headings: Sequence[str], rows: Iterable[Iterable[Cell]]) -> None:
    """Write headings and rows in UTF-8; None, NaN and infinity are empty cells.

    Text that a spreadsheet would run as a formula gets an apostrophe in front. The folder must exist.
    """
    # A file name that is not UTF-8 comes with lone surrogates, which no UTF-8 file can hold: they are spelled out.
    with (
        atomic_write(path) as draft,
        draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(headings)
        writer.writerows([_defused(cell) for cell in row] for row in rows)


def _defused(cell: Cell) -> Cell:
    """Text that begins like a formula with an apostrophe in front (OWASP: CSV injection); NaN as None.

    Numbers stay numbers, negative ones too.
    """
    if isinstance(cell, str):
        return f"'{cell}" if cell.startswith(_FORMULA) else cell
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return None if cell is None or not math.isfinite(cell) else cell
