"""CSV files as a spreadsheet would read them."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from convlens.utils.csv_files import Cell, write_csv


def written(path: Path, *cells: Cell) -> list[str]:
    write_csv(path, ["heading"] * len(cells), [cells])
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_text_that_would_run_as_a_formula_gets_an_apostrophe(tmp_path: Path, text: str) -> None:
    assert written(tmp_path / "t.csv", text) == [f"'{text}"]


@pytest.mark.parametrize(
    ("cell", "shown"), [(-1.5, "-1.5"), (3, "3"), (True, "true"), (None, ""), (math.nan, ""), (math.inf, "")]
)
def test_numbers_stay_numbers_and_what_is_none_is_empty(tmp_path: Path, cell: Cell, shown: str) -> None:
    assert written(tmp_path / "t.csv", "before", cell) == ["before", shown]


@pytest.mark.parametrize(
    ("text", "shown"), [('a "b", c', 'a "b", c'), ("two\nlines", "two\nlines"), ("\udcff.png", "\\udcff.png")]
)
def test_any_text_comes_back_whole(tmp_path: Path, text: str, shown: str) -> None:
    assert written(tmp_path / "t.csv", text, 1) == [shown, "1"]


def test_rows_that_cannot_be_made_leave_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_csv(tmp_path / "t.csv", ["a"], ([1 / n] for n in (1, 0)))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("t.csv", "old")]
