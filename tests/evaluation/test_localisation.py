"""Localisation against values by hand, all thresholds tried one by one, and objects measured in photographs."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage
from measured_boxes import PHOTOGRAPHS, VIEW_BOXES

from convlens import image
from convlens.evaluation.localisation import best_iou, localise, pointing_game
from convlens.evaluation.objects import Mask, ObjectBox, object_mask
from convlens.evaluation.relevance import relevance
from convlens.explain import ForwardPass, get, run
from convlens.models import Classifier, load
from convlens.types import Attribution, Floats

MASK_HW = np.zeros((6, 8), bool)
MASK_HW[1:4, 2:6] = True  # 12 of 48 pixels


def test_a_map_of_the_object_itself_is_right_in_every_way() -> None:
    assert localise(MASK_HW.astype(float), MASK_HW) == {"pointing_game": 1, "energy_inside": 1, "best_iou": 1}


def test_a_map_of_all_but_the_object_is_wrong_in_every_way() -> None:
    # The lowest threshold takes in all pixels: that much overlap cannot be missed.
    assert localise(1.0 - MASK_HW, MASK_HW) == {"pointing_game": 0, "energy_inside": 0, "best_iou": 0.25}


def test_a_constant_map_gets_the_objects_share_of_the_area() -> None:
    assert localise(np.full((6, 8), 3.0), MASK_HW) == {"pointing_game": 0.25, "energy_inside": 0.25, "best_iou": 0.25}


def test_random_maps_get_the_objects_share_of_the_area_on_average() -> None:
    rng = np.random.default_rng(0)
    results = [localise(rng.uniform(size=(6, 8)), MASK_HW) for _ in range(4000)]
    # Four standard errors of a share of 4000: 4 · sqrt(.25 · .75 / 4000)
    assert np.mean([each["pointing_game"] for each in results]) == pytest.approx(0.25, abs=0.028)
    assert np.mean([each["energy_inside"] for each in results]) == pytest.approx(0.25, abs=0.028)


@pytest.mark.parametrize("values", [np.zeros((6, 8)), np.full((6, 8), -1.0), MASK_HW - 1.0])
def test_a_map_without_a_positive_value_has_no_energy(values: Floats) -> None:
    assert localise(values, MASK_HW)["energy_inside"] == 0


def test_energy_counts_positive_values_alone() -> None:
    map_HW = np.zeros((6, 8))
    map_HW[2, 3], map_HW[0, 0], map_HW[5, 5], map_HW[3, 3] = 3, 1, -7, -2
    assert localise(map_HW, MASK_HW)["energy_inside"] == 0.75


@pytest.mark.parametrize("factor", [1e-310, 1e-3, 1e300])
def test_measures_do_not_depend_on_the_maps_scale(factor: float) -> None:
    map_HW = np.arange(48.0).reshape(6, 8) * 1e6
    expected = localise(map_HW, MASK_HW)
    scaled = localise(map_HW * factor, MASK_HW)
    assert scaled["pointing_game"] == expected["pointing_game"]
    assert scaled["best_iou"] == expected["best_iou"]
    # Below 1e-308 float64 keeps fewer digits.
    assert scaled["energy_inside"] == pytest.approx(expected["energy_inside"], rel=1e-6)


def test_of_several_largest_values_the_share_on_the_object_counts() -> None:
    map_HW = np.zeros((6, 8))
    map_HW[2, 3] = map_HW[3, 3] = map_HW[0, 0] = 5
    assert pointing_game(map_HW, MASK_HW) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("y", "x", "distance"),
    [(0, 3, 1.0), (5, 5, 2.0), (0, 0, math.sqrt(5)), (5, 7, math.sqrt(8)), (2, 2, 0.0)],
)
def test_with_a_tolerance_a_largest_value_near_the_object_counts(y: int, x: int, distance: float) -> None:
    map_HW = np.zeros((6, 8))
    map_HW[y, x] = 1
    assert pointing_game(map_HW, MASK_HW, tolerance=distance) == 1
    assert pointing_game(map_HW, MASK_HW, tolerance=distance * 0.999) == (distance == 0)


@pytest.mark.parametrize("levels", [1, 2, 3, 10, 10**9])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_overlap_is_that_of_the_best_of_all_thresholds(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    map_HW, mask_HW = rng.integers(-levels, levels, (9, 7)) / 3, rng.uniform(size=(9, 7)) < 0.4
    overlaps = [
        (mask_HW & (map_HW >= threshold)).sum() / (mask_HW | (map_HW >= threshold)).sum() for threshold in map_HW.flat
    ]
    assert best_iou(map_HW, mask_HW) == max(overlaps)


@pytest.mark.parametrize(
    ("map_HW", "mask_HW", "message"),
    [
        (np.ones((6, 7)), MASK_HW, "alike"),
        (np.ones((1, 6, 8)), MASK_HW[None], "alike"),
        (np.ones((6, 8)), MASK_HW.astype(float), "bool"),
        (np.full((6, 8), np.nan), MASK_HW, "48 values that are not finite"),
        (np.ones((6, 8)), np.zeros((6, 8), bool), "no pixel"),
    ],
)
def test_what_cannot_be_compared_is_an_error(map_HW: Floats, mask_HW: Mask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        localise(map_HW, mask_HW)


@pytest.mark.parametrize("tolerance", [-1, math.nan, math.inf])
def test_a_tolerance_that_is_no_distance_is_an_error(tolerance: float) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        pointing_game(np.ones((6, 8)), MASK_HW, tolerance=tolerance)


# --- real photographs -------------------------------------------------------------------------------------------------

# Method -> its options; coarser windows than usual take a third as long.
METHODS: dict[str, dict[str, int]] = {
    "occlusion": {"window": 56, "stride": 28},
    "grad_cam": {},
    "guided_backprop": {},
}
Case = tuple[Floats, int, Mask]
"""A prepared photograph, its target, and the object's pixels."""


@pytest.fixture(scope="module")
def default_model() -> Classifier:
    return load(device="cpu")


@pytest.fixture(scope="module")
def photographs(default_model: Classifier) -> list[Case]:
    return list(_photographs(default_model))


def _photographs(model: Classifier) -> Iterator[Case]:
    for file, label, marked in PHOTOGRAPHS:
        photograph = image.read(Path(skimage.__file__).parent / "data" / file)
        prepared = image.prepare(photograph, model.spec)
        mask_HW, _ = object_mask([marked], photograph.size, prepared.box, model.spec.input_size)
        assert mask_HW is not None
        yield prepared.x_CHW, model.spec.labels.index(label), mask_HW


def _imagenet(model: Classifier, folder: Path) -> Iterator[Case]:
    with (folder / "labels.csv").open(newline="") as file:
        rows = {row["class_name"]: row for row in csv.DictReader(file)}
    for name, box in VIEW_BOXES.items():
        prepared = image.prepare(image.read(folder / rows[name]["file"]), model.spec)
        mask_HW, _ = object_mask([ObjectBox(box)], (224, 224), (0, 0, 224, 224), model.spec.input_size)
        assert mask_HW is not None
        yield prepared.x_CHW, int(rows[name]["class_index"]), mask_HW


def _pointing_games(method: str, model: Classifier, cases: list[Case]) -> list[float]:
    games = []
    for x_CHW, target, mask_HW in cases:
        result = run(method, ForwardPass(model, x_CHW[None]), [target], METHODS[method])
        assert isinstance(result, Attribution)
        games.append(pointing_game(relevance(result.values_NCHW[0], get(method).drawing), mask_HW))
    return games


def _of_the_centre(cases: list[Case]) -> list[float]:
    y_H = x_W = np.arange(224) - 111.5
    return [pointing_game(-np.hypot(y_H[:, None], x_W), mask_HW) for _, _, mask_HW in cases]


def test_the_centre_misses_objects_that_lie_beside_it(photographs: list[Case]) -> None:
    assert _of_the_centre(photographs) == [0, 0, 0, 1, 1, 1]


@pytest.fixture(scope="module")
def games(default_model: Classifier, photographs: list[Case]) -> dict[str, list[float]]:
    """Method -> the pointing game of each photograph."""
    return {method: _pointing_games(method, default_model, photographs) for method in METHODS}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_methods_largest_value_is_on_the_object_more_often_than_the_centre(
    method: str, games: dict[str, list[float]], photographs: list[Case]
) -> None:
    assert np.mean(games[method]) > np.mean(_of_the_centre(photographs))


@pytest.mark.slow
def test_over_all_measured_pictures_the_methods_together_point_better_than_the_centre(
    default_model: Classifier, games: dict[str, list[float]], photographs: list[Case], test_data: Path
) -> None:
    more = list(_imagenet(default_model, test_data / "data" / "imagenet"))
    together = [[*games[method], *_pointing_games(method, default_model, more)] for method in METHODS]
    assert np.mean(together) > np.mean(_of_the_centre([*photographs, *more]))
