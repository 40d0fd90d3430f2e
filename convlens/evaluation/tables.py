"""An evaluation as CSV: one row a method, and one row a picture and method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convlens.evaluation import metrics
from convlens.utils.csv_files import Cell, write_csv

_PICTURE_FIELDS = ("id", "target", "label", "true_label", "correct", "probability", "logit")


def write_methods_csv(path: Path, summary: Mapping[str, Any]) -> None:
    """A row a method or baseline: each metric's mean, interval and number of pictures, the seconds, the differences.

    The order is the ranking's, then that of the summary. What was not measured is empty.
    """
    names = summarised_metrics(summary)
    ranking = [name for name in summary["ranking"] if name in summary["methods"]]
    order = dict.fromkeys([*ranking, *summary["methods"]])
    headings = ["method", "kind", "rank"]
    headings += [f"{name}{part}" for name in names for part in ("", "_low", "_high", "_n")]
    headings += ["seconds", *_difference_headings("best"), "baseline", *_difference_headings("baseline")]
    headings += ["failed", "failed_reason"]
    write_csv(path, headings, (_method_row(summary, name, names) for name in order))


def write_pictures_csv(path: Path, records: Iterable[Mapping[str, Any]], metric_names: Sequence[str]) -> None:
    """A row a picture and method; a picture that could not be read is a row with its error and no method."""
    headings = [*_PICTURE_FIELDS, "method", "seconds", *metric_names, "error"]
    write_csv(path, headings, (row for record in records for row in _picture_rows(record, metric_names)))


def summarised_metrics(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics that a summary has of any method, the main one first, then in the order of ``metrics``."""
    measured = {name for method in summary["methods"].values() for name in method["metrics"]}
    known = (summary["main_metric"], *metrics.metric_names(metrics.GROUPS))
    return tuple(name for name in dict.fromkeys((*known, *sorted(measured))) if name in measured)


def _difference_headings(to: str) -> list[str]:
    return [f"{part}_{to}" for part in ("difference_to", "low_to", "high_to", "n_to")]


def _difference_cells(difference: Mapping[str, Any]) -> list[Cell]:
    return [difference.get(part) for part in ("difference", "low", "high", "n")]


def _method_row(summary: Mapping[str, Any], name: str, names: Sequence[str]) -> Iterator[Cell]:
    method, ranking = summary["methods"][name], list(summary["ranking"])
    yield name
    yield "baseline" if name in summary["baselines"] else "method"
    yield ranking.index(name) + 1 if name in ranking else None
    for each in names:
        value = method["metrics"].get(each) or {}
        yield from (value.get(part) for part in ("mean", "low", "high", "n"))
    yield method["seconds"]
    yield from _difference_cells(method.get("against_best") or {})
    against_baseline = method.get("against_baseline") or {}
    yield against_baseline.get("baseline")
    yield from _difference_cells(against_baseline)
    yield from (method["failed"]["count"], method["failed"]["reason"])


def _picture_rows(record: Mapping[str, Any], names: Sequence[str]) -> Iterator[list[Cell]]:
    picture = [record.get(field) for field in _PICTURE_FIELDS]
    if "error" in record:
        yield [*picture, None, None, *(None for _ in names), record["error"]]
    for method, result in record.get("methods", {}).items():
        values = result.get("values", {})
        yield [*picture, method, result.get("seconds"), *map(values.get, names), result.get("error")]
