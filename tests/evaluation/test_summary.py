"""The summary of records whose means, differences and orders can be told by hand."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from convlens.evaluation.summary import method_kind, summarise
from convlens.explain import available_methods

SETTINGS: dict[str, Any] = {
    "methods": {"saliency": {}, "grad_cam": {}},
    "baselines": ["centre", "edges"],
    "metrics": ["insertion", "deletion"],
    "steps": 2,
    "seed": 0,
}


def record(number: int, *, curves: dict[str, Any] | None = None, **values: float | str | None) -> dict[str, Any]:
    """One image; a text instead of a value is why the method has no map, None that it was not measured."""
    methods: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, str):
            methods[name] = {"error": value}
        else:
            measured = {} if value is None else {"faithfulness": value}
            methods[name] = {"seconds": 0.01 * number, "values": measured, "curves": curves or {}}
    return {"id": f"{number:02}.jpg", "methods": methods}


def records() -> list[dict[str, Any]]:
    """Saliency is better than Grad-CAM by .2 on each image, the centre better than the edges by .1."""
    return [
        record(number, saliency=level + 0.2, grad_cam=level, centre=level - 0.1, edges=level - 0.2)
        for number, level in enumerate((0.25, 0.5, 0.75, 0.375), start=1)
    ]


def test_means_stand_with_their_number_of_images() -> None:
    metrics = summarise(records(), SETTINGS)["methods"]["grad_cam"]["metrics"]
    assert metrics["faithfulness"]["mean"] == pytest.approx(0.46875)
    assert metrics["faithfulness"]["n"] == 4
    assert 0.25 <= metrics["faithfulness"]["low"] < 0.46875 < metrics["faithfulness"]["high"] <= 0.75


def test_metrics_that_were_not_measured_are_absent() -> None:
    assert list(summarise(records(), SETTINGS)["methods"]["saliency"]["metrics"]) == ["faithfulness"]


def test_methods_and_baselines_are_ranked_together() -> None:
    summary = summarise(records(), SETTINGS)
    assert summary["ranking"] == ["saliency", "grad_cam", "centre", "edges"]
    assert (summary["best"], summary["best_baseline"]) == ("saliency", "centre")


def test_differences_are_paired() -> None:
    """The values spread over .5, the differences not at all."""
    method = summarise(records(), SETTINGS)["methods"]["grad_cam"]
    for against, expected in (("against_best", -0.2), ("against_baseline", 0.1)):
        assert method[against]["difference"] == pytest.approx(expected)
        assert method[against]["high"] - method[against]["low"] == pytest.approx(0, abs=1e-12)
        assert method[against]["n"] == 4
    assert method["against_baseline"]["baseline"] == "centre"
    assert method["against_baselines"]["edges"]["difference"] == pytest.approx(0.2)


def test_the_best_and_the_baselines_are_not_compared_with_themselves() -> None:
    methods = summarise(records(), SETTINGS)["methods"]
    assert methods["saliency"]["against_best"] is None
    assert methods["centre"]["against_baseline"] is None
    assert methods["centre"]["against_best"]["difference"] == pytest.approx(-0.3)


def test_methods_are_compared_with_the_best_of_their_kind() -> None:
    settings = SETTINGS | {"methods": {"saliency": {}, "grad_cam": {}, "occlusion": {}}}
    with_occlusion = [each | {"methods": each["methods"] | record(1, occlusion=0.05)["methods"]} for each in records()]
    methods = summarise(with_occlusion, settings)["methods"]
    assert methods["occlusion"]["against_best_of_kind"]["method"] == "grad_cam"
    assert methods["occlusion"]["against_best_of_kind"]["difference"] == pytest.approx(0.05 - 0.46875)
    assert methods["grad_cam"]["against_best_of_kind"] is None
    assert methods["saliency"]["against_best_of_kind"] is None


def test_where_less_is_better_the_least_is_best() -> None:
    settings = SETTINGS | {"metrics": ["deletion"]}
    lower = [
        {"id": f"{n}", "methods": {name: {"values": {"deletion": value + n / 10}} for name, value in pairs}}
        for n, pairs in enumerate([(("saliency", 0.1), ("grad_cam", 0.3), ("centre", 0.2), ("edges", 0.4))] * 3)
    ]
    summary = summarise(lower, settings)
    assert summary["main_metric"] == "deletion"
    assert summary["ranking"] == ["saliency", "centre", "grad_cam", "edges"]
    assert summary["methods"]["grad_cam"]["against_best"]["difference"] == pytest.approx(0.2)
    assert (summary["methods"]["saliency"]["best"], summary["methods"]["saliency"]["worst"]) == (["0", "1"], ["2"])


@pytest.mark.parametrize(
    ("groups", "main"),
    [
        (["deletion", "insertion", "sparseness"], "faithfulness"),
        (["localisation", "insertion"], "insertion"),
        (["localisation", "randomisation"], "pointing_game"),
        (["sparseness", "road"], "road_morf"),
        (["sparseness"], ""),
        ([], ""),
    ],
)
def test_the_main_metric_tells_what_the_score_rests_on_where_one_does(groups: list[str], main: str) -> None:
    summary = summarise(records(), SETTINGS | {"metrics": groups})
    assert summary["main_metric"] == main


def test_without_a_main_metric_nothing_is_ranked() -> None:
    summary = summarise(records(), SETTINGS | {"metrics": ["sparseness"]})
    assert summary["ranking"] == []
    assert summary["best"] is None
    assert summary["methods"]["saliency"]["against_best"] is None
    assert summary["methods"]["saliency"]["best"] == []


def test_best_and_worst_images_are_named_the_most_extreme_first() -> None:
    many = [record(n, saliency=n / 10, grad_cam=0.0, centre=0.0, edges=0.0) for n in range(1, 9)]
    method = summarise(many, SETTINGS)["methods"]["saliency"]
    assert method["best"] == ["08.jpg", "07.jpg", "06.jpg"]
    assert method["worst"] == ["01.jpg", "02.jpg", "03.jpg"]


def test_the_only_image_is_not_also_the_worst() -> None:
    method = summarise(records()[:1], SETTINGS)["methods"]["saliency"]
    assert (method["best"], method["worst"]) == (["01.jpg"], [])


def test_seconds_are_the_median_over_images() -> None:
    assert summarise(records(), SETTINGS)["methods"]["saliency"]["seconds"] == pytest.approx(0.025)


def test_failures_of_a_method_are_counted_with_the_commonest_reason() -> None:
    reasons = ["no layer", "out of memory", "no layer"]
    failed = [record(n, saliency=reason, grad_cam=0.1) for n, reason in enumerate(reasons, start=7)]
    summary = summarise([*records(), *failed], SETTINGS)
    assert summary["methods"]["saliency"]["failed"] == {"count": 3, "reason": "no layer"}
    assert summary["methods"]["saliency"]["metrics"]["faithfulness"]["n"] == 4
    assert summary["methods"]["grad_cam"]["failed"] == {"count": 0, "reason": ""}


def test_a_method_of_few_of_the_images_is_not_the_best() -> None:
    """It may have had the easy ones."""
    lucky = [record(n, saliency="no layer" if n > 1 else 0.9, grad_cam=0.3, centre=0.1, edges=0.1) for n in range(1, 6)]
    summary = summarise(lucky, SETTINGS)
    assert summary["ranking"][0] == "saliency"
    assert summary["best"] == "grad_cam"


def test_images_that_could_not_be_evaluated_are_listed_and_not_counted() -> None:
    summary = summarise([{"id": "z.jpg", "error": "not an image"}, *records()], SETTINGS)
    assert summary["failures"] == [{"id": "z.jpg", "reason": "not an image"}]
    assert summary["pictures"] == 4


def test_mean_curves_stand_over_their_fractions() -> None:
    curves = [{"insertion": {"probability": [0.0, 0.2, 1.0]}}, {"insertion": {"probability": [0.0, 0.6, 0.8]}}]
    two = [record(n, curves=curve, saliency=0.1) for n, curve in enumerate(curves)]
    insertion = summarise(two, SETTINGS)["methods"]["saliency"]["curves"]["insertion"]
    assert insertion["fraction"] == [0.0, 0.5, 1.0]
    assert insertion["probability"]["mean"] == pytest.approx([0.0, 0.4, 0.9])
    # Of two values each interval reaches from the one to the other.
    assert insertion["probability"]["low"] == pytest.approx([0.0, 0.2, 0.8])
    assert insertion["probability"]["high"] == pytest.approx([0.0, 0.6, 1.0])


def test_curves_measured_on_some_images_are_means_of_those() -> None:
    curve = {
        "road": {"morf": [0.5, 0.1], "lerf": [0.9, 0.8]},
        "randomisation": {"cascading": {"spearman": [0.4, None], "errors": {"stem": "dead"}}},
    }
    mixed = [record(1, curves=curve, saliency=0.1), record(2, saliency=0.1), record(3, curves=curve, saliency=0.2)]
    settings = SETTINGS | {"road_fractions": [0.1, 0.9], "stages": ["head", "stem"]}
    method = summarise(mixed, settings)["methods"]["saliency"]
    assert method["curves"]["road"] == {
        "fraction": [0.1, 0.9],
        "morf": {"mean": [0.5, 0.1], "low": [0.5, 0.1], "high": [0.5, 0.1]},
        "lerf": {"mean": [0.9, 0.8], "low": [0.9, 0.8], "high": [0.9, 0.8]},
    }
    assert method["randomisation"] == {
        "cascading": {"spearman": {"mean": [0.4, None], "low": [0.4, None], "high": [0.4, None]}}
    }


@pytest.mark.parametrize("n", [0, 1, 2, 4])
def test_the_summary_is_json_without_nan(n: int) -> None:
    json.dumps(summarise(records()[:n], SETTINGS), allow_nan=False)


def test_values_that_are_no_numbers_count_as_not_measured() -> None:
    odd = [*records(), record(8, saliency=float("nan"), grad_cam=None)]
    metrics = summarise(odd, SETTINGS)["methods"]
    assert metrics["saliency"]["metrics"]["faithfulness"]["n"] == 4
    assert metrics["grad_cam"]["metrics"]["faithfulness"]["n"] == 4


def test_the_order_of_the_records_does_not_matter() -> None:
    """A resumed evaluation may have written them in another one."""
    shuffled = [*records(), {"id": "a.jpg", "error": "empty"}, {"id": "b.jpg", "error": "empty"}]
    expected = summarise(shuffled, SETTINGS)
    random.Random(0).shuffle(shuffled)
    assert summarise(shuffled, SETTINGS) == expected


def test_methods_of_coarse_maps_are_for_regions() -> None:
    regions = {"grad_cam", "grad_cam_plus_plus", "hires_cam", "layer_cam", "occlusion", "rise", "score_cam"}
    assert {name for name in available_methods() if method_kind(name) == "regions"} == regions
    assert method_kind("random blobs") == "detail"
