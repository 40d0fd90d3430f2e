"""The list of a picture's strongest units: the order and the places, by numbers that are read off the maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from node_bridge import NODE, JavaScriptError, NodeBridge, node_bridge

pytestmark = pytest.mark.skipif(NODE is None, reason="no node on the PATH")

# Of four channels, 2 rows of 3: the largest are 5 at (1, 2), 8 at (0, 1), −1 at (1, 0) and 8 at (0, 0).
MAPS_1CHW = np.array(
    [
        [
            [[0, 1, 2], [3, 4, 5]],
            [[0, 8, 8], [1, 1, 1]],
            [[-9, -9, -9], [-1, -9, -9]],
            [[8, 0, 0], [0, 0, 0]],
        ]
    ],
    np.float32,
)
STRONGEST = (10, 4, 0, 32)  # on the atlas's images: shares of 0.5, 2, none and 0.25


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeBridge]:
    with node_bridge(tmp_path_factory.mktemp("page")) as bridge:
        yield bridge


def channels(numbers: tuple[int, ...] = (0, 1, 2, 3)) -> list[dict[str, Any]]:
    return [{"channel": n, "strongest": STRONGEST[n], "page": f"{n}.html", "picture": f"{n}.jpg"} for n in numbers]


def units(node: NodeBridge, output: np.ndarray, *, count: int = 4, order: str = "share", **of: Any) -> Any:
    given = {"data": output.reshape(-1), "dims": list(output.shape)}
    return node("units", "strongestUnits", of.get("known", channels()), given, count, order)


@pytest.mark.parametrize(("order", "expected"), [("share", [1, 0, 3, 2]), ("activation", [1, 3, 0, 2])])
def test_units_are_sorted_strongest_first_and_of_equal_ones_the_lower_channel(
    node: NodeBridge, order: str, expected: list[int]
) -> None:
    assert [unit["channel"] for unit in units(node, MAPS_1CHW, order=order)] == expected


def test_a_unit_has_its_largest_activation_its_place_and_its_share(node: NodeBridge) -> None:
    found = {unit["channel"]: unit for unit in units(node, MAPS_1CHW)}
    assert found[0] == {
        "channel": 0,
        "activation": 5,
        "y": 1,
        "x": 2,
        "share": 0.5,
        "page": "0.html",
        "picture": "0.jpg",
    }
    assert [found[n]["share"] for n in (1, 2, 3)] == [2, None, 0.25]
    assert [(found[n]["y"], found[n]["x"]) for n in (1, 2, 3)] == [(0, 1), (1, 0), (0, 0)]


def test_no_more_are_listed_than_asked_for(node: NodeBridge) -> None:
    assert [unit["channel"] for unit in units(node, MAPS_1CHW, count=2)] == [1, 0]


def test_only_channels_of_the_atlas_are_listed(node: NodeBridge) -> None:
    assert [unit["channel"] for unit in units(node, MAPS_1CHW, known=channels((0, 3)))] == [0, 3]


def test_only_the_first_image_of_a_batch_counts(node: NodeBridge) -> None:
    batch_NCHW = np.concatenate([MAPS_1CHW, 100 + MAPS_1CHW])
    assert units(node, batch_NCHW) == units(node, MAPS_1CHW)


def test_a_layer_without_a_map_has_units_without_a_place(node: NodeBridge) -> None:
    found = units(node, np.array([[3, 2, 1, 4]], np.float32), order="activation")
    assert [(unit["channel"], unit["activation"], unit["y"], unit["x"]) for unit in found] == [
        (3, 4, None, None),
        (0, 3, None, None),
        (1, 2, None, None),
        (2, 1, None, None),
    ]


def test_a_channel_that_the_layer_has_not_is_refused(node: NodeBridge) -> None:
    with pytest.raises(JavaScriptError, match="channel 2 of a layer of 2"):
        units(node, MAPS_1CHW[:, :2])


def test_another_order_is_refused_with_those_there_are(node: NodeBridge) -> None:
    with pytest.raises(JavaScriptError, match="share, activation"):
        units(node, MAPS_1CHW, order="name")
