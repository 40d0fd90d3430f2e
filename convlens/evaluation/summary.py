"""From one record per image to what all of them say: means with intervals, comparisons, curves, failures."""

from __future__ import annotations

import collections
import functools
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from convlens.evaluation.metrics import metric, metric_names
from convlens.evaluation.statistics import MeanIntervals, as_columns, mean_intervals
from convlens.explain import available_methods, get
from convlens.types import Floats

Kind = Literal["detail", "regions"]
Record = Mapping[str, Any]

FAITHFUL_GROUPS = ("", "insertion", "deletion", "road", "infidelity")
"""Groups of metrics that tell how well a map finds what the score rests on; faithfulness is of none."""
_SERIES = {
    "insertion": ("probability", "logit"),
    "deletion": ("probability", "logit"),
    "road": ("morf", "lerf"),
    "randomisation": ("spearman", "spearman_absolute", "ssim"),
}
_RANDOMISATIONS = ("cascading", "independent")
_EXTREMES = 3
_NEARLY_ALL = 0.9


def method_kind(name: str) -> Kind:
    """Whether a method's map shows regions only, or single pixels."""
    return "regions" if name in available_methods() and get(name).shows_regions else "detail"


def main_metric(groups: Sequence[str]) -> str:
    """The metric that ranks the methods, '' where no metric has a better direction.

    It is faithfulness, else the first that tells how well a map finds what the score rests on, else the first of all.
    """
    directed = [name for name in metric_names(groups) if metric(name).better]
    faithful = [name for name in directed if metric(name).group in FAITHFUL_GROUPS]
    return next(iter([*faithful, *directed]), "")


def summarise(records: Sequence[Record], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Summary of an evaluation, for JSON; the order of ``records`` does not matter.

    Every mean stands with the ends of its 95 % interval and the number of images behind it; an interval of fewer than
    two images is None. ``ranking`` holds methods and baselines, ``best`` is its first method that has a value for nine
    in ten of the images that any method has one for. Differences are a method's value less the other's on the same
    images, in the metric's own unit, whichever direction is better. ``against_best_of_kind`` compares with the best of
    the methods that show the same ``kind`` of thing. ``fraction`` of a curve is the share of the pixels shown
    (insertion), removed (deletion) or imputed (ROAD).
    """
    evaluated = sorted((record for record in records if "error" not in record), key=lambda record: str(record["id"]))
    failures = sorted((record for record in records if "error" in record), key=lambda record: str(record["id"]))
    entries = _entries(evaluated, [*settings["methods"], *settings["baselines"]])
    columns = _Columns(int(settings.get("seed", 0)))
    values = {name: _add_values(columns, name, entries[name], settings["metrics"]) for name in entries}
    for name in entries:
        _add_curves(columns, name, entries[name], settings)
    main = main_metric(settings["metrics"])
    ranking = _Ranking({name: each[main] for name, each in values.items()} if main else {}, main, settings["baselines"])
    for pair, difference in ranking.differences().items():
        columns.add(("difference", *pair), difference[:, None])
    ids = [record["id"] for record in evaluated]
    return {
        "main_metric": main,
        "ranking": ranking.names,
        "baselines": list(settings["baselines"]),
        "best": ranking.best(),
        "best_baseline": next(iter(ranking.baselines), None),
        "pictures": len(evaluated),
        "failures": [{"id": record["id"], "reason": record["error"]} for record in failures],
        "methods": {
            name: {
                "kind": method_kind(name),
                "metrics": columns.estimates("values", name),
                "seconds": _median([entry.get("seconds") for entry in entries[name]]),
                "curves": _curves(columns, name, settings),
                "randomisation": columns.series("randomisation", name),
                **ranking.extremes(name, ids),
                "failed": _failed(entries[name]),
                **_comparisons(columns, name, ranking),
            }
            for name in entries
        },
    }


class _Columns:
    """Columns of one value per image that are resampled all together: to draw the resamples costs most."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._blocks: list[Floats] = []
        self._places: dict[tuple[Hashable, ...], slice] = {}
        self._width = 0

    def add(self, key: tuple[Hashable, ...], block_NK: Floats) -> None:
        self._places[key] = slice(self._width, self._width + block_NK.shape[1])
        self._blocks.append(block_NK)
        self._width += block_NK.shape[1]

    @functools.cached_property
    def _intervals(self) -> MeanIntervals:
        return mean_intervals(np.concatenate(self._blocks, axis=1), seed=self._seed)

    def estimate(self, *key: Hashable) -> dict[str, Any]:
        return self._intervals.estimate(self._places[key].start)

    def estimates(self, *prefix: Hashable) -> dict[str, Any]:
        """What was measured of the columns whose keys begin so, by the last part of the key."""
        found = {str(key[-1]): self.estimate(*key) for key in self._keys(prefix)}
        return {name: estimate for name, estimate in found.items() if estimate["n"]}

    def series(self, *prefix: Hashable) -> dict[str, Any]:
        """The blocks whose keys begin so, nested by the rest of the key."""
        result: dict[str, Any] = {}
        for key in self._keys(prefix):
            inner = result
            for part in key[len(prefix) : -1]:
                inner = inner.setdefault(str(part), {})
            inner[str(key[-1])] = self._intervals.series(self._places[key])
        return result

    def _keys(self, prefix: tuple[Hashable, ...]) -> list[tuple[Hashable, ...]]:
        return [key for key in self._places if key[: len(prefix)] == prefix]


class _Ranking:
    """Methods and baselines, ordered by the mean of their main values; NaN is an image without a value."""

    def __init__(self, values: Mapping[str, Floats], main: str, baselines: Sequence[str]) -> None:
        self._values = values
        self._sign = -1 if main and metric(main).better == "lower" else 1
        measured = {name: each[np.isfinite(each)] for name, each in values.items()}
        self._counts = {name: len(each) for name, each in measured.items()}
        means = {name: float(each.mean()) for name, each in measured.items() if len(each)}
        self.names = sorted(means, key=lambda name: -self._sign * means[name])
        self.methods = [name for name in self.names if name not in baselines]
        self.baselines = [name for name in self.names if name in baselines]

    def best(self, kind: Kind | None = None) -> str | None:
        """The best method (of that kind) with values for nearly all of the images."""
        enough = _NEARLY_ALL * max((self._counts[name] for name in self.methods), default=0)
        methods = (name for name in self.methods if kind in (None, method_kind(name)))
        return next((name for name in methods if self._counts[name] >= enough), None)

    def differences(self) -> dict[tuple[str, str], Floats]:
        """Value less the other's per image, of each name and what it is compared with."""
        others = {name: [self.best(), *self.baselines] for name in self.names}
        for name in self.methods:
            others[name].append(self.best(method_kind(name)))
        return {
            (name, other): self._values[name] - self._values[other]
            for name in self.names
            for other in others[name]
            if other not in (None, name)
        }

    def extremes(self, name: str, ids: Sequence[str]) -> dict[str, list[str]]:
        """Ids of the images with the best and the worst values, the most extreme first; none is in both."""
        values = self._values.get(name, np.empty(0))
        order = np.argsort(-self._sign * values, kind="stable")
        ordered = [ids[index] for index in order if math.isfinite(values[index])]
        half = len(ordered) // 2
        return {"best": ordered[: min(_EXTREMES, len(ordered) - half)], "worst": ordered[::-1][: min(_EXTREMES, half)]}


def _entries(records: Sequence[Record], names: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    return {name: [record["methods"].get(name, {}) for record in records] for name in names}


def _add_values(
    columns: _Columns, name: str, entries: Sequence[Mapping[str, Any]], groups: Sequence[str]
) -> dict[str, Floats]:
    values = {
        each: as_columns([[entry.get("values", {}).get(each)] for entry in entries], 1) for each in metric_names(groups)
    }
    for each, column in values.items():
        columns.add(("values", name, each), column)
    return {each: column[:, 0] for each, column in values.items()}


def _add_curves(
    columns: _Columns, name: str, entries: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    curves = [entry.get("curves", {}) for entry in entries]
    for curve, fraction in _fractions(settings).items():
        of_images = [each.get(curve, {}) for each in curves]
        _add_series(columns, ("curves", name, curve), of_images, _SERIES[curve], len(fraction))
    stages = len(settings.get("stages", ()))
    for order in _RANDOMISATIONS:
        of_images = [each.get("randomisation", {}).get(order, {}) for each in curves]
        _add_series(columns, ("randomisation", name, order), of_images, _SERIES["randomisation"], stages)


def _add_series(
    columns: _Columns, prefix: tuple[str, ...], of_images: Sequence[Mapping[str, Any]], names: Sequence[str], width: int
) -> None:
    for name in names:
        if any(name in each for each in of_images):
            columns.add((*prefix, name), as_columns([each.get(name) for each in of_images], width))


def _fractions(settings: Mapping[str, Any]) -> dict[str, list[float]]:
    steps = np.linspace(0, 1, int(settings["steps"]) + 1).tolist()
    return {"insertion": steps, "deletion": steps, "road": list(settings.get("road_fractions", ()))}


def _curves(columns: _Columns, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    fractions = _fractions(settings)
    return {curve: {"fraction": fractions[curve]} | each for curve, each in columns.series("curves", name).items()}


def _comparisons(columns: _Columns, name: str, ranking: _Ranking) -> dict[str, Any]:
    def against(other: str | None) -> dict[str, Any] | None:
        if other in (None, name) or name not in ranking.names:
            return None
        estimate = columns.estimate("difference", name, other)
        return {"difference": estimate.pop("mean")} | estimate if estimate["n"] else None

    is_method = name in ranking.methods
    of_kind = ranking.best(method_kind(name)) if is_method else None
    against_kind = against(of_kind)
    against_baselines = {other: against(other) for other in ranking.baselines if is_method}
    baselines = {other: each for other, each in against_baselines.items() if each is not None}
    return {
        "against_best": against(ranking.best()),
        "against_best_of_kind": {"method": of_kind} | against_kind if against_kind else None,
        "against_baseline": next(({"baseline": other} | each for other, each in baselines.items()), None),
        "against_baselines": baselines,
    }


def _median(seconds: Sequence[float | None]) -> float | None:
    measured = [each for each in seconds if each is not None]
    return statistics.median(measured) if measured else None


def _failed(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    reasons = collections.Counter(str(entry["error"]) for entry in entries if "error" in entry)
    commonest = min(reasons, key=lambda reason: (-reasons[reason], reason), default="")
    return {"count": reasons.total(), "reason": commonest}
