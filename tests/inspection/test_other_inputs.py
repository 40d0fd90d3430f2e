"""Looking inside networks of rectangles, of grey and of many channels."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convlens import image
from convlens.errors import RequestError
from convlens.inspection.filters import draw_filters, layer_filters
from convlens.inspection.patch_sheet import crop, crop_gradient, draw_channel_sheet
from convlens.inspection.patches import PatchGradients, find_patches
from convlens.inspection.pixel_neighbours import nearest_by_pixels
from convlens.inspection.receptive_field import receptive_field, receptive_fields
from convlens.models import Classifier, wrap

SIZE = (20, 36)


def classifier(channels: int, **options) -> Classifier:
    torch.manual_seed(0)
    layers = nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU()
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return wrap(module, size=SIZE, mean=[0.5] * channels, std=[0.25] * channels, **options)


def test_receptive_fields_are_those_of_a_rectangle() -> None:
    fields = receptive_fields(classifier(4))
    assert fields["3"].image_size == SIZE
    # 3×3, pooled by 2, 3×3 unpadded: (20/2 - 2) × (36/2 - 2) units that see 8 pixels, 2 apart
    assert (fields["3"].grid, fields["3"].size, fields["3"].stride) == ((8, 16), (8, 8), (2, 2))
    assert fields["6"].size == SIZE


def test_a_size_that_does_not_fit_is_answered_with_the_networks_own() -> None:
    with pytest.raises(RequestError, match=re.escape("its own size is 20×36")):
        receptive_field(classifier(4), "3", 2)


@pytest.fixture(params=[1, 4], ids=["grey", "four channels"])
def scenes(request, tmp_path: Path) -> tuple[int, dict[str, Path], dict[str, np.ndarray]]:
    """Noise of the network's own size, so that nothing is resized."""
    channels, rng = request.param, np.random.default_rng(0)
    values = {f"{n}.npy": rng.integers(0, 256, (*SIZE, channels), dtype=np.uint8) for n in range(6)}
    for name, values_HWC in values.items():
        np.save(tmp_path / name, values_HWC)
    return channels, {name: tmp_path / name for name in values}, values


def test_patches_are_where_plain_torch_finds_them(scenes) -> None:
    channels, files, values = scenes
    model = classifier(channels)
    result = find_patches(model, files, layer="4", k=3)
    x_NCHW = torch.tensor(np.stack(list(values.values())).transpose(0, 3, 1, 2) / 255, dtype=torch.float32)
    with torch.no_grad():
        maps_NCHW = model.module[:5]((x_NCHW - 0.5) / 0.25).numpy()
    names = list(values)
    for channel, patches in result.by_channel.items():
        peaks_N = maps_NCHW[:, channel].reshape(len(values), -1).max(1)
        expected = [names[n] for n in np.argsort(-peaks_N, kind="stable")[:3]]
        assert [patch.image_id for patch in patches] == expected
        best = patches[0]
        at = np.unravel_index(maps_NCHW[names.index(best.image_id), channel].argmax(), maps_NCHW.shape[2:])
        assert (best.neuron.y, best.neuron.x) == at


def test_patches_are_drawn_as_they_are_shown_and_their_gradients_as_magnitudes(scenes) -> None:
    channels, files, values = scenes
    model = classifier(channels)
    result = find_patches(model, files, layer="4", channels=[2], k=2)
    (best, _) = result.by_channel[2]
    view_HWC, x_CHW = result.read(best, model)
    shown = values[best.image_id][..., [0, 0, 0] if channels == 1 else [0, 1, 2]]
    np.testing.assert_array_equal(view_HWC, shown)
    (gradient,) = PatchGradients(model, "4").each([best.neuron], [x_CHW])
    assert gradient.shape == (channels, *SIZE)
    tile = crop(view_HWC, best.box, fill=image.displayed_mean(model.spec))
    sheet = draw_channel_sheet([tile], [crop_gradient(gradient, best.box)])
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_filters_over_other_channels_than_colours_are_greys(channels: int) -> None:
    filters = layer_filters(classifier(channels))
    assert filters.weights_OCHW.shape == (6, channels, 3, 3)
    assert not filters.on_colours
    figure = draw_filters([filters])
    body = figure[60:-60]
    assert (body[..., 0] == body[..., 1]).all()


def test_pixels_of_deep_images_are_compared_in_levels_of_255() -> None:
    deep = np.full((2, 2, 6), 0.5, np.float32)
    views = [np.zeros((2, 2, 6), np.float32), np.full((2, 2, 6), 128, np.uint8)]
    ((first, second),) = nearest_by_pixels([deep], views, k=2, excluded=[frozenset()])
    # 24 values half a level and 127.5 levels away
    assert (first.row, second.row) == (1, 0)
    np.testing.assert_allclose([first.distance, second.distance], np.sqrt(24) * np.array([0.5, 127.5]))


def test_the_mean_is_shown_in_the_display_channels() -> None:
    model = wrap(classifier(4).module, size=SIZE, mean=[0.0, 0.2, 0.4, 1.0], std=[1.0] * 4, display_channels=(3, 1, 0))
    assert image.displayed_mean(model.spec) == (255, 51, 0)
    assert Image.new("RGB", (1, 1), image.displayed_mean(classifier(1).spec)).getpixel((0, 0)) == (128, 128, 128)
