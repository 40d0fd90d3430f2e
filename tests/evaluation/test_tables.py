"""The CSV files of an evaluation: every number under its heading, and nothing that a spreadsheet would run."""

from __future__ import annotations

import csv
from pathlib import Path

import evaluations
import pytest

from convlens.evaluation.tables import summarised_metrics, write_methods_csv, write_pictures_csv


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_method_has_its_means_intervals_and_differences(tmp_path: Path) -> None:
    write_methods_csv(tmp_path / "methods.csv", evaluations.summary())
    rows = {row["method"]: row for row in rows_of(tmp_path / "methods.csv")}
    row = rows["guided_backprop"]
    # .57 − .18 = .39 ± .03, which is .07 below integrated gradients' .46 and .12 above the centre's .27
    assert float(row["faithfulness"]) == pytest.approx(0.39)
    assert (float(row["faithfulness_low"]), float(row["faithfulness_high"])) == pytest.approx((0.36, 0.42))
    assert (row["faithfulness_n"], row["road_morf_n"], row["seconds"]) == ("200", "20", "0.031")
    assert float(row["difference_to_best"]) == pytest.approx(-0.07)
    assert row["baseline"] == "centre"
    assert float(row["difference_to_baseline"]) == pytest.approx(0.12)
    assert (rows["centre"]["kind"], row["kind"]) == ("baseline", "method")


def test_methods_stand_in_the_order_of_the_ranking_with_those_that_failed_last(tmp_path: Path) -> None:
    write_methods_csv(tmp_path / "methods.csv", evaluations.summary())
    rows = rows_of(tmp_path / "methods.csv")
    # insertion − deletion is .46 of the first and .41 of the second
    assert [row["method"] for row in rows[:2]] == ["integrated_gradients", "smooth_grad"]
    assert [row["rank"] for row in rows] == [*map(str, range(1, 11)), ""]
    assert rows[-1]["method"] == evaluations.FAILED
    assert (rows[-1]["faithfulness"], rows[-1]["failed"]) == ("", "200")
    assert rows[-1]["failed_reason"].startswith("score_cam needs")


def test_the_main_metric_comes_first_and_metrics_of_no_method_are_no_columns() -> None:
    names = summarised_metrics(evaluations.summary() | {"main_metric": "deletion"})
    assert names[0] == "deletion"
    assert set(names) == set(evaluations.method_summary("edges")["metrics"])


def test_one_picture_has_no_interval(tmp_path: Path) -> None:
    write_methods_csv(tmp_path / "methods.csv", evaluations.summary(pictures=1, intervals=False))
    row = rows_of(tmp_path / "methods.csv")[0]
    assert (row["faithfulness_low"], row["faithfulness_high"], row["low_to_best"]) == ("", "", "")


def test_each_picture_and_method_is_a_row_and_so_is_an_unreadable_picture(tmp_path: Path) -> None:
    path = tmp_path / "pictures.csv"
    write_pictures_csv(path, evaluations.records(), ("faithfulness", "deletion", "insertion"))
    rows = rows_of(path)
    assert len(rows) == 6 * 11 + 1
    assert rows[0] == {
        "id": "n0144.jpg", "target": "282", "label": "tiger cat", "true_label": "tiger cat", "correct": "true",
        "probability": "0.395", "logit": "9.25", "method": "integrated_gradients", "seconds": "0.62",
        "faithfulness": "0.7", "deletion": "-0.25", "insertion": "", "error": "",
    }  # fmt: skip
    assert (rows[10]["method"], rows[10]["seconds"]) == (evaluations.FAILED, "")
    assert rows[10]["error"].startswith("score_cam needs")
    assert (rows[-1]["id"], rows[-1]["method"], rows[-1]["error"]) == (
        "broken.jpg",
        "",
        "the JPEG ends in the middle",
    )


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_what_a_spreadsheet_would_run_becomes_text(tmp_path: Path, start: str) -> None:
    name = f'{start}HYPERLINK("http://x"),"\n1.jpg'
    write_pictures_csv(tmp_path / "pictures.csv", [{"id": name, "error": f"{start}cmd"}], ())
    row = rows_of(tmp_path / "pictures.csv")[0]
    assert (row["id"], row["error"]) == (f"'{name}", f"'{start}cmd")


def test_a_file_name_that_is_not_utf_8_is_spelled_out(tmp_path: Path) -> None:
    write_pictures_csv(tmp_path / "pictures.csv", [{"id": "caf\udce9.jpg", "error": "x"}], ())
    assert rows_of(tmp_path / "pictures.csv")[0]["id"] == "caf\\udce9.jpg"


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "pictures.csv"
    path.write_text("old")
    with pytest.raises(AttributeError):
        write_pictures_csv(path, [{"id": "a", "methods": {"saliency": None}}], ())
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("pictures.csv", "old")]
