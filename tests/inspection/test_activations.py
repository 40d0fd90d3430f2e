"""Activations are what the layer gave, before anything behind it touched them."""

from __future__ import annotations

from collections.abc import Callable

import nets
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convlens import load
from convlens.errors import ModelError, RequestError
from convlens.inspection import Activations, activations
from convlens.inspection.activations import draw_all_channels, draw_channel, draw_overlay, draw_strongest_channels
from convlens.visualization import colour_bar, scale
from convlens.visualization.colourbar import BarKind


class InPlace(nn.Module):
    """Channels 2r and −3g − 0.6, and an in-place ReLU right behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.head = nn.Conv2d(3, 2, 1), nn.ReLU(inplace=True), nn.Linear(2, 2)
        self.first.weight.data = torch.tensor([[2.0, 0.0, 0.0], [0.0, -3.0, 0.0]])[:, :, None, None]
        self.first.bias.data = torch.tensor([0.0, -0.6])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.first(x)).mean((2, 3)))


def picture() -> np.ndarray:
    x_CHW = np.zeros((3, 2, 3), np.float32)
    x_CHW[0, 1, 2], x_CHW[1, 0, 1] = 0.5, 1.0
    return x_CHW


def test_values_are_taken_before_an_in_place_relu_overwrites_them() -> None:
    result = activations(nets.classifier(InPlace(), classes=2), picture(), layer="first")
    expected = np.zeros((2, 2, 3))
    expected[0, 1, 2] = 1.0
    expected[1] = -0.6
    expected[1, 0, 1] = -3.6
    np.testing.assert_allclose(result.maps_CHW, expected, rtol=1e-6)
    assert result.signed
    behind = activations(nets.classifier(InPlace(), classes=2), picture(), layer="relu")
    np.testing.assert_allclose(behind.maps_CHW, expected.clip(0), rtol=1e-6)
    assert not behind.signed


def by_hand(*maps: object) -> Activations:
    return Activations("model", "0" * 64, "layer", "Conv2d", np.asarray(maps, np.float32))


def test_channels_rank_by_their_largest_value_equals_in_order() -> None:
    result = by_hand([[0, 2], [1, 0]], [[-9, 5], [0, 0]], [[2, 2], [2, 2]], [[-1, -2], [-3, -4]])
    assert result.ranking.tolist() == [1, 0, 2, 3]
    assert by_hand(*[[[n % 3]] for n in range(60)]).ranking[:20].tolist() == list(range(2, 60, 3))
    assert [result.peak(channel) for channel in range(4)] == [(2, 0, 1), (5, 0, 1), (2, 0, 0), (-1, 0, 0)]


@pytest.mark.parametrize("channel", [-1, 4, 4000])
def test_an_unknown_channel_is_refused_with_those_there_are(channel: int) -> None:
    result = by_hand(*[[[0, 1]]] * 4)
    view = np.zeros((4, 4, 3), np.uint8)
    drawings = (lambda n: draw_channel(result, n), lambda n: draw_overlay(result, n, view))
    for ask in (result.channel, result.peak, *drawings):
        with pytest.raises(RequestError, match=rf"no channel {channel}; there are 0\.\.3"):
            ask(channel)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("conv_sten", "no layer 'conv_sten'; did you mean conv_stem"),
        (
            "classifier",
            r"\(Linear\) gives 1000 numbers per image and no map .*the last one that does is bn2",
        ),
    ],
)
def test_a_layer_without_maps_is_refused(layer: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        activations(load(device="cpu"), np.zeros((3, 224, 224), np.float32), layer=layer)


def test_channels_that_come_last_are_not_taken_for_rows() -> None:
    convnext = load("torchvision:convnext_tiny:untrained", device="cpu")
    with pytest.raises(RequestError, match="no map of channels"):
        activations(convnext, np.zeros((3, 224, 224), np.float32), layer="features.1.0.block.3")


def test_values_that_are_not_finite_are_refused() -> None:
    module = InPlace()
    module.first.bias.data[1] = torch.inf
    with pytest.raises(ModelError, match="'first' gave values that are not finite"):
        activations(nets.classifier(module, classes=2), picture(), layer="first")


# ---- drawn: colours at places known beforehand

BLACK, WHITE = [0, 0, 0], [255, 255, 255]


def test_the_sheet_shows_all_channels_in_order_on_one_scale() -> None:
    result = by_hand(*[np.full((2, 2), value) for value in (0.0, 4.0, 2.0, 0.0, 1.0)])
    sheet = draw_all_channels(result)
    lightness = np.array([sheet[y, x].sum() for y, x in _middles(columns=3, rows=2, tile=960 // 9 * 2, left=12 + 44)])
    strongest, second, third = lightness[1], lightness[2], lightness[4]
    assert strongest > second > third > lightness[0] == lightness[3] == 0
    assert lightness[5] == 3 * 255  # nobody there: paper


def _middles(*, columns: int, rows: int, tile: int, left: int) -> list[tuple[int, int]]:
    places = [(row, column) for row in range(rows) for column in range(columns)]
    # A tile has a frame of one pixel on every side.
    return [(12 + row * (tile + 2) + tile // 2, left + column * (tile + 2) + tile // 2) for row, column in places]


def test_the_strongest_come_first_and_no_more_than_asked_for() -> None:
    result = by_hand(*[np.full((2, 2), value) for value in (1.0, 4.0, 2.0)])
    two, three = draw_strongest_channels(result, most=2), draw_strongest_channels(result)
    row = three[12 + 24 + 70]
    seen = [int(row[x].sum()) for x in (12 + 75, 12 + 160 + 75, 12 + 2 * 160 + 75)]
    assert seen[0] > seen[1] > seen[2] > 0
    np.testing.assert_array_equal(two[36:150, 12:324], three[36:150, 12:324])
    bar = three[12:150, 12 + 3 * 160 + 8 :][:, :60]
    np.testing.assert_array_equal(two[12:150, 12 + 2 * 160 + 8 :][:, :60], bar)


def test_one_channel_is_drawn_square_by_square_blue_below_zero_and_red_above() -> None:
    drawn = draw_channel(by_hand([[0, 3], [-3, 0]]), 0)[13 : 13 + 448, 13 : 13 + 448]
    upper_left, red, blue = drawn[100, 100], drawn[100, 300], drawn[300, 100]
    assert upper_left.tolist() == WHITE
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert (drawn[:224, 224:] == red).all()


@pytest.mark.parametrize("value", [-3.0, 3.0, 0.0])
@pytest.mark.parametrize("draw", [draw_all_channels, lambda maps: draw_channel(maps, 0)])
def test_every_map_has_a_grey_border_whatever_its_colour(
    draw: Callable[[Activations], np.ndarray], value: float
) -> None:
    drawn = draw(by_hand(np.full((2, 2), value)))
    left = int(np.flatnonzero((drawn[100] == 150).all(axis=1))[0])
    assert (drawn[12:412, left] == 150).all()
    assert not (drawn[100, left + 1] == 150).all()
    assert (drawn[100, left - 1] == 255).all()


@pytest.mark.parametrize(("low", "kind"), [(0, "sequential"), (-1, "diverging")])
def test_beside_the_maps_stands_the_bar_of_their_scale(low: float, kind: BarKind) -> None:
    result = by_hand([[4, 4], [4, low]])
    limit = scale(np.array([[4, 4], [4, low]]))
    bar = colour_bar(limit, kind=kind, height=320, unit="activation")
    drawn = draw_channel(result, 0)
    left = 12 + 450 + 16
    np.testing.assert_array_equal(drawn[12 : 12 + 320, left : left + bar.shape[1]], bar)


def test_an_overlay_colours_the_place_where_the_map_is_large() -> None:
    view = np.full((64, 64, 3), 128, np.uint8)
    drawn = draw_overlay(by_hand([[0, 0], [0, 5]]), 0, view).astype(int)
    plain, marked = drawn[8, 8], drawn[56, 56]
    assert len(set(plain.tolist())) == 1
    assert marked[0] - marked[2] > 100
