"""Objects in the model's view, against values by hand, matplotlib, and the pixels that prepare itself makes."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image, ImageDraw

from convlens import image
from convlens.errors import RequestError
from convlens.evaluation.objects import (
    Mask,
    ObjectBox,
    ObjectMask,
    ObjectPolygons,
    mask_runs,
    object_mask,
    objects_for,
)
from convlens.types import Box, ModelSpec

# The mean is 0, so that a border is black.
SPEC = ModelSpec("test", 32, 40, "bilinear", (0.0,) * 3, (1.0,) * 3, ("a",), "head", "conv", "conv", "0" * 64)
WHOLE = (0.0, 0.0, 4.0, 4.0)


def seen(marked: ObjectBox | ObjectPolygons | ObjectMask, box: Box = WHOLE, side: int = 2) -> Mask:
    mask_HW, reason = object_mask([marked], (4, 4), box, (side, side))
    assert mask_HW is not None, reason
    return mask_HW


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        # Of two pixels a side the centres lie at 1 and 3.
        ((0, 0, 2, 1.5), [[1, 0], [0, 0]]),
        ((0.9, 0, 3.1, 4), [[1, 1], [1, 1]]),
        ((1, 1, 3, 3), [[1, 0], [0, 0]]),  # a centre on the left edge counts, on the right edge it does not
        ((1.1, 0, 4, 1.1), [[0, 1], [0, 0]]),
        ((-50, 2, 2, 70), [[0, 0], [1, 0]]),  # beyond the image it is cut off
    ],
)
def test_a_pixel_shows_the_object_where_its_centre_does(box: Box, expected: list[list[int]]) -> None:
    np.testing.assert_array_equal(seen(ObjectBox(box)), expected)


def test_the_view_is_a_part_of_the_image() -> None:
    # Centres at 1.5 and 2.5 in both directions.
    np.testing.assert_array_equal(seen(ObjectBox((2, 0, 4, 2)), box=(1, 1, 3, 3)), [[0, 1], [0, 0]])


def test_the_border_around_an_image_shows_no_object() -> None:
    # Centres at -2, 2 and 6: only the middle lies in the image.
    np.testing.assert_array_equal(
        seen(ObjectBox((-9, -9, 9, 9)), box=(-4, -4, 8, 8), side=3), [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    )


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (33, 47), (640, 427)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_pixels_that_prepare_makes_white_show_the_object_and_black_ones_do_not(
    size: tuple[int, int], mode: str
) -> None:
    spec = replace(SPEC, crop_mode=mode)
    left, top, right, bottom = size[0] // 4, size[1] // 3, size[0] * 2 // 3, size[1] * 3 // 4
    picture = Image.new("RGB", size)
    ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), fill="white")
    prepared = image.prepare(picture, spec)
    mask_HW, _ = object_mask([ObjectBox((left, top, right, bottom))], size, prepared.box, spec.input_size)
    assert mask_HW is not None
    view_HW = prepared.view_HWC[..., 0]
    assert mask_HW[view_HW == 255].all()
    assert not mask_HW[view_HW == 0].any()
    assert ((view_HW > 0) & (view_HW < 255)).mean() < 0.35  # what is neither lies along the edges


def test_coordinates_are_those_of_the_image_after_its_exif_rotation() -> None:
    stored = Image.new("RGB", (60, 40))
    ImageDraw.Draw(stored).rectangle((0, 0, 29, 9), fill="white")  # at the top left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the top left comes to the top right
    with io.BytesIO() as file:
        stored.save(file, "PNG", exif=exif)
        upright = image.decode(file.getvalue())
    assert upright.size == (40, 60)
    mask_HW, _ = object_mask([ObjectBox((30, 0, 40, 30))], (40, 60), (0, 0, 40, 60), (60, 40))
    np.testing.assert_array_equal(mask_HW, np.asarray(upright)[..., 0] == 255)


@pytest.mark.parametrize("seed", range(4))
def test_a_polygon_covers_the_points_that_matplotlib_finds_in_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    corners = 50 + rng.uniform(10, 60, 12)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    x_W, y_H = np.arange(100) + 0.5, np.arange(80) + 0.5
    points = np.stack(np.meshgrid(x_W, y_H), axis=-1).reshape(-1, 2)
    expected_HW = Outline(np.concatenate([corners, corners[:1]]), closed=True).contains_points(points).reshape(80, 100)
    polygon = ObjectPolygons((tuple(map(tuple, corners)),))
    np.testing.assert_array_equal(polygon.covers(x_W, y_H), expected_HW)


def test_the_parts_of_a_polygon_add_up_also_where_they_overlap() -> None:
    square, shifted = ((0, 0), (3, 0), (3, 3), (0, 3)), ((2, 2), (4, 2), (4, 4), (2, 4))
    expected = [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1]]
    np.testing.assert_array_equal(seen(ObjectPolygons((square, shifted)), side=4), expected)


@pytest.mark.parametrize("first", [0, 1])
def test_a_mask_of_runs_covers_its_own_pixels(first: int) -> None:
    mask_HW = np.random.default_rng(3).uniform(size=(7, 5)) < 0.5
    mask_HW[0, 0] = bool(first)
    marked = ObjectMask(mask_runs(mask_HW), (5, 7))
    np.testing.assert_array_equal(marked.covers(np.arange(5) + 0.5, np.arange(7) + 0.01), mask_HW)


@pytest.mark.parametrize(
    ("mask", "runs"),
    [
        ([[0, 0], [1, 0]], (1, 1, 2)),  # down the first column, then down the second
        ([[1, 1], [1, 1]], (0, 4)),
        ([[0, 1], [0, 1]], (2, 2)),
        ([[0, 0], [0, 0]], (4,)),
    ],
)
def test_runs_go_down_the_columns_and_begin_outside(mask: list[list[int]], runs: tuple[int, ...]) -> None:
    assert mask_runs(np.asarray(mask)) == runs


def test_several_objects_are_seen_together() -> None:
    boxes = [ObjectBox((0, 0, 2, 2)), ObjectBox((2, 2, 4, 4))]
    mask_HW, _ = object_mask(boxes, (4, 4), WHOLE, (2, 2))
    np.testing.assert_array_equal(mask_HW, [[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ([], "no object is marked"),
        ([ObjectBox((0, 0, 1, 1))], "shows no pixel"),  # in the part that is cut off
        ([ObjectBox((1.6, 1.6, 1.9, 1.9))], "shows no pixel"),  # between two centres
    ],
)
def test_without_a_pixel_of_an_object_in_view_there_is_a_reason_and_no_mask(
    objects: list[ObjectBox], reason: str
) -> None:
    mask_HW, said = object_mask(objects, (4, 4), (1.0, 1.0, 3.0, 3.0), (2, 2))
    assert mask_HW is None
    assert reason in said


@pytest.mark.parametrize("box", [(4, 0, 6, 2), (0, 4, 2, 6), (-3, 0, 0, 2), (0, -3, 2, 0)])
def test_an_object_outside_its_image_is_refused_with_its_place(box: Box) -> None:
    with pytest.raises(RequestError, match=r"boxes.csv: line 3 \(a.jpg\): .* outside its image of 4 × 4"):
        object_mask([ObjectBox(box, source="boxes.csv: line 3 (a.jpg)")], (4, 4), WHOLE, (2, 2))


@pytest.mark.parametrize(
    "marked",
    [
        ObjectBox((0, 0, 1, 1), size=(3, 5), source="a.xml"),
        ObjectPolygons((((0, 0), (1, 0), (1, 1)),), size=(3, 5), source="a.xml"),
        ObjectMask((0, 15), (3, 5), source="a.xml"),
    ],
)
def test_an_object_marked_in_an_image_of_another_size_is_refused(
    marked: ObjectBox | ObjectPolygons | ObjectMask,
) -> None:
    with pytest.raises(RequestError, match=r"a.xml: marked in an image of 3 × 5 pixels, this one has 4 × 4"):
        object_mask([marked], (4, 4), WHOLE, (2, 2))


CAT, DOG, NAMELESS = ObjectBox((0, 0, 1, 1), "cat"), ObjectBox((1, 0, 2, 1), "Great_Dane"), ObjectBox((2, 0, 3, 1))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("cat", (CAT,)),
        ("Cat", (CAT,)),
        ("great dane", (DOG,)),
        ("Great Dane, boarhound", (DOG,)),
        ("tiger cat", (CAT, DOG, NAMELESS)),  # no object of that label: all count
        ("", (CAT, DOG, NAMELESS)),
    ],
)
def test_objects_of_the_targets_label_count_where_there_are_any(label: str, expected: tuple[ObjectBox, ...]) -> None:
    assert objects_for([CAT, DOG, NAMELESS], label) == expected
