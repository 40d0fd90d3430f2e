"""The table of an evaluation's page: methods and baselines by metric, and how names and numbers are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convlens.evaluation.metrics import Better, Metric, metric
from convlens.evaluation.tables import summarised_metrics
from convlens.report.html import milliseconds

Json = Mapping[str, Any]
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# ---- names and numbers


@dataclass(frozen=True)
class Naming:
    titles: Mapping[str, str]

    def of(self, method: str) -> str:
        words = method.replace("_", " ").strip()
        return self.titles.get(method) or words[:1].upper() + words[1:]


def known_metric(name: str) -> Metric:
    """The metric of that name; one without a description for a name that is not known, as of a newer version."""
    try:
        return metric(name)
    except KeyError:
        return Metric(name, "", name.replace("_", " "), "", "", "")


def number(value: float, decimals: int = 2) -> str:
    """``.46``, ``−.02``, ``9.25``, ``4.1 × 10⁻⁵``: without a zero before the point, with a true minus sign."""
    if 0 < abs(value) < 0.5 * 10**-decimals:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−")
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f").replace("-", "−")
    text = f"{value:.{decimals}f}"
    if text.startswith(("0.", "-0.")):
        text = text.replace("0.", ".", 1)
    return text.replace("-", "−")


def with_interval(mean: float, low: float | None, high: float | None) -> tuple[str, str]:
    """The mean and its ``± half width``, which is empty without an interval."""
    if low is None or high is None:
        return number(mean), ""
    half_width = (high - low) / 2
    decimals = 3 if 0 < half_width < 0.005 and abs(mean) < 10 else 2
    return number(mean, decimals), f"± {number(half_width, decimals)}"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return "0" if value == 0 else milliseconds(1000 * value) if value < 1 else f"{value:.3g} s"


def by_main_metric(summary: Json) -> list[str]:
    """All methods and baselines, the best by the main metric first, those without a value last."""
    name = summary["main_metric"]
    sign = -1 if known_metric(name).better == "higher" else 1 if known_metric(name).better == "lower" else 0

    def rank(method: str) -> tuple[bool, float]:
        value = summary["methods"][method]["metrics"].get(name)
        return value is None, sign * value["mean"] if value else 0.0

    ranking = [method for method in summary["ranking"] if method in summary["methods"]]
    return sorted(dict.fromkeys([*ranking, *summary["methods"]]), key=rank)


# ---- the table


@dataclass(frozen=True)
class _Column:
    title: str
    better: Better
    shows: str = ""
    source: str = ""


@dataclass(frozen=True)
class _Cell:
    """``value`` is what the column is sorted by; None where nothing was measured."""

    value: float | None = None
    text: str = ""
    interval: str = ""
    note: str = ""
    is_best: bool = False


@dataclass(frozen=True)
class _Row:
    title: str
    is_baseline: bool
    is_recommended: bool
    failed: str
    cells: tuple[_Cell, ...]


@dataclass(frozen=True)
class Table:
    columns: tuple[_Column, ...]
    rows: tuple[_Row, ...]
    compares: bool


def build_table(summary: Json, recommended: Sequence[str], order: Sequence[str], naming: Naming) -> Table:
    # One picture allows figures, and no claim that a method is the best; without a ranking there is none either.
    compares = summary["pictures"] > 1 and bool(summary["main_metric"])
    names = summarised_metrics(summary)
    metrics = [known_metric(name) for name in names]
    columns = [_Column(each.title, each.better, each.shows, each.source) for each in metrics]
    if compares:
        columns.insert(1, _difference_column(known_metric(summary["main_metric"])))
    columns.append(_Column("time a picture", "lower", "median seconds per picture"))
    best = {each.name: _best(summary, each) if compares else "" for each in metrics}
    best_method = summary["best"]
    rows = []
    for name in order:
        method = summary["methods"][name]
        cells = [_metric_cell(method, each, is_best=best[each] == name) for each in names]
        if compares:
            cells.insert(1, _Cell(0.0, "the best") if name == best_method else _difference_cell(method["against_best"]))
        cells.append(_Cell(method["seconds"], _seconds(method["seconds"])))
        is_baseline = name in summary["baselines"]
        rows.append(_Row(naming.of(name), is_baseline, name in recommended, _failed(method), tuple(cells)))
    return Table(tuple(columns), tuple(rows), compares)


def _difference_column(main: Metric) -> _Column:
    return _Column("to the best", main.better, f"{main.title} less that of the best method, on the same pictures")


def _best(summary: Json, of: Metric) -> str:
    """The method with the best mean, baselines left out; empty where none is the best."""
    means = {
        name: method["metrics"][of.name]["mean"]
        for name, method in summary["methods"].items()
        if of.name in method["metrics"] and name not in summary["baselines"]
    }
    # Of the sanity checks none is the best: whether a map changes is the question, a correlation below 0 no virtue.
    if not means or not of.better or of.group == "randomisation":
        return ""
    return str((max if of.better == "higher" else min)(means, key=means.__getitem__))


def _metric_cell(method: Json, name: str, *, is_best: bool) -> _Cell:
    value = method["metrics"].get(name)
    if value is None:
        return _Cell()
    text, interval = with_interval(value["mean"], value["low"], value["high"])
    return _Cell(value["mean"], text, interval, is_best=is_best)


def _difference_cell(against: Json | None) -> _Cell:
    if against is None:
        return _Cell()
    text, interval = with_interval(against["difference"], against["low"], against["high"])
    text = f"+{text}" if against["difference"] > 0 else text
    holds_zero = bool(interval) and against["low"] <= 0 <= against["high"]
    return _Cell(against["difference"], text, interval, "no difference shown" if holds_zero else "")


def _failed(method: Json) -> str:
    count, reason = int(method["failed"]["count"]), method["failed"]["reason"]
    return f"no map of {count} {'picture' if count == 1 else 'pictures'}: {reason}" if count else ""
