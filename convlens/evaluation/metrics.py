"""What an evaluation measures: the groups that are asked for by name, and the values that each gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from convlens.errors import RequestError, near_matches

Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Metric:
    """One number per image and method. ``better`` is empty where neither more nor less of it is better."""

    name: str
    group: str
    title: str
    better: Better
    shows: str
    source: str


@dataclass(frozen=True)
class Group:
    """Metrics that are computed together. ``costly`` ones are measured on some of the images only."""

    name: str
    costly: bool
    metrics: tuple[Metric, ...]


def _group(name: str, *metrics: tuple[str, str, Better, str, str], costly: bool = False) -> Group:
    return Group(name, costly, tuple(Metric(each[0], name, *each[1:]) for each in metrics))


_RISE = "Petsiuk et al. 2018, arXiv:1806.07421"
_ROAD = "Rong et al. 2022, arXiv:2202.00449"

GROUPS = {
    group.name: group
    for group in (
        _group(
            "insertion",
            ("insertion", "insertion", "higher", "mean probability while the best pixels are shown first", _RISE),
            (
                "insertion_logit",
                "insertion, logit",
                "higher",
                "mean logit while the best pixels are shown first",
                _RISE,
            ),
        ),
        _group(
            "deletion",
            ("deletion", "deletion", "lower", "mean probability while the best pixels are removed first", _RISE),
            ("deletion_logit", "deletion, logit", "lower", "mean logit while the best pixels are removed first", _RISE),
        ),
        _group(
            "road",
            ("road_morf", "ROAD, best first", "lower", "mean probability with the best pixels imputed", _ROAD),
            ("road_lerf", "ROAD, worst first", "higher", "mean probability with the worst pixels imputed", _ROAD),
            costly=True,
        ),
        _group(
            "infidelity",
            (
                "infidelity",
                "infidelity",
                "lower",
                "squared error of the map as a linear prediction of the score's change, at its best scale",
                "Yeh et al. 2019, arXiv:1901.09392",
            ),
            costly=True,
        ),
        _group(
            "sensitivity",
            (
                "max_sensitivity",
                "max-sensitivity",
                "lower",
                "largest relative change of the map under noise that nobody sees",
                "Yeh et al. 2019, arXiv:1901.09392",
            ),
            costly=True,
        ),
        _group(
            "sparseness",
            (
                "sparseness",
                "sparseness",
                "",
                "Gini index of the map: 0 where all pixels count alike, 1 where one counts alone",
                "Chalasani et al. 2020, arXiv:1810.06583",
            ),
        ),
        _group(
            "randomisation",
            (
                "randomised_top",
                "top layer random",
                "lower",
                "rank correlation with the map of a network whose top layer has random weights",
                "Adebayo et al. 2018, arXiv:1810.03292",
            ),
            (
                "randomised_all",
                "all layers random",
                "lower",
                "rank correlation with the map of a network whose weights are all random",
                "Adebayo et al. 2018, arXiv:1810.03292",
            ),
            costly=True,
        ),
        _group(
            "localisation",
            (
                "pointing_game",
                "pointing game",
                "higher",
                "share of images whose most relevant pixel lies in the object",
                "Zhang et al. 2016, arXiv:1608.00507",
            ),
            (
                "energy_inside",
                "energy inside",
                "higher",
                "share of the map's positive values that lies in the object",
                "Wang et al. 2020, arXiv:1910.01279",
            ),
            (
                "best_iou",
                "best IoU",
                "higher",
                "intersection over union of object and map, at the map's best threshold",
                "Everingham et al. 2010, doi:10.1007/s11263-009-0275-4",
            ),
        ),
    )
}
FAITHFULNESS = Metric(
    "faithfulness",
    "",
    "insertion − deletion",
    "higher",
    "insertion less deletion: how well the map's order of the pixels predicts the probability",
    _RISE,
)
_METRICS = {metric.name: metric for group in GROUPS.values() for metric in group.metrics} | {
    FAITHFULNESS.name: FAITHFULNESS
}


def metric(name: str) -> Metric:
    """The metric of that name; KeyError for an unknown one."""
    return _METRICS[name]


def metric_names(groups: Iterable[str]) -> tuple[str, ...]:
    """Of the values that these groups give, ``faithfulness`` first where it can be told."""
    names = [metric.name for name in groups for metric in GROUPS[name].metrics]
    return (FAITHFULNESS.name, *names) if {"insertion", "deletion"} <= set(names) else tuple(names)


def require_groups(names: Iterable[str]) -> tuple[str, ...]:
    """The same names, each once; RequestError for an unknown one."""
    for name in names:
        if name not in GROUPS:
            raise RequestError(
                f"no metric {name!r}{near_matches(name, GROUPS)}; there are: {', '.join(GROUPS)}", field="metrics"
            )
    return tuple(dict.fromkeys(names))
