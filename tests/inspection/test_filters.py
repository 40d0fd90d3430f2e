"""Filters set by hand come out as the pictures that they are."""

from __future__ import annotations

import nets
import numpy as np
import pytest
import torch
from torch import nn

from convlens import load
from convlens.errors import RequestError
from convlens.inspection import Filters, layer_filters
from convlens.inspection.filters import Scaling, draw_filters, filter_images, grey_images
from convlens.visualization import colour_bar
from convlens.visualization.layout import text_image

# A filter that is red at the upper left, blue at the lower right and takes green away between; and one half as strong.
BY_HAND = np.zeros((2, 3, 2, 2), np.float32)
BY_HAND[0, 0, 0, 0], BY_HAND[0, 2, 1, 1], BY_HAND[0, 1, 0, 1] = 4.0, 2.0, -4.0
BY_HAND[1, :, 1, 0] = 2.0
DARK, GREY, LIGHT, WHITE = 1, 128, 192, 255  # 128 + 127 · part, a half being 63.5 and rounded to the even 64


def test_a_filter_set_by_hand_comes_out_as_that_image() -> None:
    first, second = filter_images(BY_HAND)
    expected = np.full((2, 2, 3), GREY)
    expected[0, 0, 0], expected[0, 1, 1], expected[1, 1, 2] = WHITE, DARK, LIGHT
    np.testing.assert_array_equal(first, expected)
    expected = np.full((2, 2, 3), GREY)
    expected[1, 0] = WHITE
    np.testing.assert_array_equal(second, expected)


def test_scaled_alike_a_filter_half_as_strong_looks_so() -> None:
    _, second = filter_images(BY_HAND, scaling="shared")
    assert second[1, 0].tolist() == [LIGHT] * 3
    assert (np.delete(second.reshape(4, 3), 2, axis=0) == GREY).all()


def test_greys_come_filter_by_filter_and_show_what_there_is_room_for() -> None:
    weights_OCHW = np.arange(-6, 6, dtype=np.float32).reshape(2, 3, 1, 2)
    by_filter = [tile[0, :, 0].tolist() for tile in grey_images(weights_OCHW, most=2)]
    # filter 0: −6…−1 over 6; filter 1: 0…5 over 5; the third channel of each left out, but not from its scale
    assert by_filter == [[1, 22], [43, 64], [128, 153], [179, 204]]
    shared = [tile[0, :, 0].tolist() for tile in grey_images(weights_OCHW, most=2, scaling="shared")]
    assert shared == [[1, 22], [43, 64], [128, 149], [170, 192]]


def test_a_filter_of_zeros_is_grey() -> None:
    assert (filter_images(np.zeros((1, 3, 2, 2), np.float32))[0] == GREY).all()


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("alexnet", "features.0", (64, 3, 11, 11)),
        ("resnet18", "conv1", (64, 3, 7, 7)),
        ("resnet101", "conv1", (64, 3, 7, 7)),
        ("densenet121", "features.conv0", (64, 3, 7, 7)),
    ],
)
def test_the_first_convolution_s_weights_are_those_of_the_network(
    name: str, layer: str, shape: tuple[int, ...]
) -> None:
    classifier = load(f"torchvision:{name}:untrained", device="cpu")
    result = layer_filters(classifier)
    assert (result.layer, result.weights_OCHW.shape, result.on_colours) == (layer, shape, True)
    np.testing.assert_array_equal(result.weights_OCHW, classifier.module.state_dict()[f"{layer}.weight"].numpy())
    with pytest.raises(ValueError, match="read-only"):
        result.weights_OCHW[0] = 0


def test_three_channels_of_a_deeper_layer_are_no_colours() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 3))
    classifier = nets.classifier(nets.Sequential(module, channels=3), classes=2)
    assert layer_filters(classifier).on_colours
    assert not layer_filters(classifier, "middle.1").on_colours


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("features.1", r"'features\.1' is a ReLU and has no filters; did you mean features\.\d+"),
        ("feature.3", r"no layer 'feature\.3'; did you mean features\.3"),
        ("classifier", r"'classifier' is a Sequential and has no filters; its first convolutions are features\.0, "),
    ],
)
def test_a_layer_without_filters_is_refused_with_those_that_have_some(layer: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        layer_filters(load("torchvision:alexnet:untrained", device="cpu"), layer)


def test_deeper_filters_are_drawn_in_grey_with_a_caption_that_says_what_they_are_not() -> None:
    weights_OCHW = np.zeros((2, 2, 1, 1), np.float32)
    weights_OCHW[0, 0], weights_OCHW[1, 1] = 1.0, -0.5
    figure = draw_filters([Filters("model", "deep", "Conv2d", weights_OCHW, False)], scaling="shared")
    inner = figure[16:-16, 16:-16]
    caption = text_image(
        "Conv2d 2×2×1×1. All 2 filters (rows) over all 2 channels (columns). These are not directly interpretable: "
        "they weigh channels of the layer before, not colours, and what those channels mean is not in this picture. "
        "Zero is mid grey; all filters are scaled alike, to the layer's largest weight.",
        size=14,
        width=520,
    )
    np.testing.assert_array_equal(inner[-len(caption) :], caption)
    title = text_image("model deep", size=20, width=520)
    np.testing.assert_array_equal(inner[: len(title)], title)
    sheet = inner[len(title) + 8 : -len(caption) - 8]
    tiles = sheet[18:, 34:]  # two by two: 130 pixels each, 65 apart
    quarters = [tiles[y, x].tolist() for y in (65, 260) for x in (65, 260)]
    assert quarters == [[WHITE] * 3, [GREY] * 3, [GREY] * 3, [64] * 3]  # −0.5 of 1: 128 − 63.5, to even


@pytest.mark.parametrize(
    ("on_colours", "channels", "above", "before"),
    [
        (False, 3, ("0", "1", "2"), ("0", "1")),
        (True, 3, ("+0", "+1"), ("0", "2")),
        (False, 1, ("+0", "+1"), ("0", "2")),
    ],
)
def test_rows_and_columns_bear_the_numbers_of_filters_and_channels(
    on_colours: bool, channels: int, above: tuple[str, ...], before: tuple[str, ...]
) -> None:
    count = 2 if channels == 3 and not on_colours else 4
    filters = Filters("model", "layer", "Conv2d", np.ones((count, channels, 1, 1), np.float32), on_colours)
    inner = draw_filters([filters])[16:-16, 16:-16]
    sheet = inner[len(text_image("model layer", size=20, width=520)) + 8 :]
    # A square of one weight takes 520 // (columns * 2) pixels, and half as many part it from the next.
    side = 520 // (len(above) * 2)
    pitch = side + side // 2
    for n, text in enumerate(above):
        number = text_image(text, size=11, width=30)[:18]
        np.testing.assert_array_equal(sheet[: len(number), 34 + n * pitch :][:, :30], number)
    for n, text in enumerate(before):
        number = text_image(text, size=11, width=30)[:18]
        np.testing.assert_array_equal(sheet[18 + n * pitch :][: len(number), :30], number)


@pytest.mark.parametrize("scaling", ["own", "shared"])
def test_a_bar_of_weights_stands_beside_filters_of_one_scale_only(scaling: Scaling) -> None:
    figure = draw_filters([Filters("model", "layer", "Conv2d", BY_HAND, True)], scaling=scaling)[16:-16, 16:-16]
    sheet = figure[len(text_image("model layer", size=20, width=520)) + 8 :]
    side = 520 // (2 * 3)  # of a weight; two tiles of two weights, half a weight apart
    left, height = 34 + 4 * side + side // 2 + 16, 18 + 2 * side
    bar = colour_bar(4, kind="grey", height=height, unit="weight")
    found = np.pad(sheet, ((0, 0), (0, 99), (0, 0)), constant_values=255)[:height, left : left + bar.shape[1]]
    assert (found == bar).all() == (scaling == "shared")


def test_panels_stand_side_by_side() -> None:
    panels = [Filters("one", "a", "Conv2d", BY_HAND, True), Filters("two", "b", "Conv2d", BY_HAND[:1], True)]
    both = draw_filters(panels)
    one, two = (draw_filters([panel]) for panel in panels)
    np.testing.assert_array_equal(both[: len(one), : one.shape[1] - 16], one[:, :-16])
    np.testing.assert_array_equal(both[: len(two), one.shape[1] + 8 :], two[:, : both.shape[1] - one.shape[1] - 8])
    with pytest.raises(RequestError, match="at least one"):
        draw_filters([])


def test_words_are_drawn_broken_and_never_lost() -> None:
    one, two = (text_image(text, size=12, width=120) for text in ("short", "a good deal longer than the sheet is wide"))
    assert one.shape[1] == two.shape[1] == 120
    assert two.shape[0] > one.shape[0]
    # A word as wide as ten sheets' lines is all there: ten times the ink of one that is a tenth as long.
    tenth, whole = (text_image("m" * count, size=12, width=60) for count in (4, 40))
    assert (whole < 128).sum() == 10 * (tenth < 128).sum()


def test_half_precision_weights_are_read_exactly() -> None:
    module = nets.Sequential(nn.Identity())
    module.first.weight.data = torch.full_like(module.first.weight, 0.1)
    result = layer_filters(nets.classifier(module.half(), classes=2))
    assert result.weights_OCHW.dtype == np.float32
    assert (result.weights_OCHW == np.float16(0.1).astype(np.float32)).all()
