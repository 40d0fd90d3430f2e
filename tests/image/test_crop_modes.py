from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from timm.data import create_transform

from convlens.errors import ImageError, ModelError
from convlens.image import ChannelImage, prepare, view
from convlens.types import ModelSpec
from convlens.visualization import place_in_image

SIZES = [(900, 300), (300, 900), (640, 481), (257, 301), (224, 224), (33, 400), (1, 1), (3, 2), (255, 999), (500, 375)]
INPUTS = [(224, 224), (63, 63), (64, 128), (127, 65), (96, 288)]


def spec(size=(224, 224), crop_pct=0.875, mode="center", *, mean=(0.485, 0.456, 0.406), **options) -> ModelSpec:
    resize = [math.floor(side / crop_pct) for side in size]
    return ModelSpec("net", size[0], resize[0], options.pop("interpolation", "bicubic"), mean, (0.2,) * len(mean),
                     ("a", "b"), "fc", "features", "conv", "0" * 64, crop_mode=mode, crop_width=size[1],
                     resize_width=resize[1], **options)  # fmt: skip


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def by_timm(image: Image.Image, size, crop_pct, mode, mean, interpolation="bicubic", **options) -> torch.Tensor:
    # a square is a number to timm as well: its centre crop then takes another way
    side = size[0] if size[0] == size[1] else size
    transform = create_transform(
        side,
        crop_pct=crop_pct,
        crop_mode=mode,
        mean=mean,
        std=(0.2,) * len(mean),
        interpolation=interpolation,
        is_training=False,
        **options,
    )
    return transform(image)


@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.95])
@pytest.mark.parametrize("size", INPUTS, ids=str)
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_each_crop_mode_is_timms_own_pixel_for_pixel(mode, size, crop_pct):
    options = spec(size, crop_pct, mode)
    for sides in SIZES:
        image = noise(*sides)
        expected = by_timm(image, size, crop_pct, mode, options.mean, normalize=False)
        prepared = prepare(image, options)
        np.testing.assert_array_equal(prepared.view_HWC.transpose(2, 0, 1), expected.numpy(), err_msg=str(sides))
        normalised = by_timm(image, size, crop_pct, mode, options.mean)
        # the same float32 operations
        np.testing.assert_array_equal(prepared.x_CHW, normalised.numpy())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_grey_models_see_pillows_luma_as_timm_prepares_it(mode, interpolation):
    options = spec((64, 96), 0.9, mode, mean=(0.5,), interpolation=interpolation)
    image = Image.fromarray(skimage.data.chelsea())
    expected = by_timm(image.convert("L"), (64, 96), 0.9, mode, (0.5,), interpolation, normalize=False)
    prepared = prepare(image, options)
    np.testing.assert_array_equal(prepared.view_HWC.transpose(2, 0, 1), expected.numpy())
    np.testing.assert_array_equal(prepared.display_HWC, np.repeat(prepared.view_HWC, 3, axis=2))


def test_a_grey_image_in_memory_is_taken_for_what_it_is():
    grey, options = noise(50, 40).convert("L"), spec((40, 50), 1.0, mean=(0.5,))
    np.testing.assert_array_equal(prepare(grey, options).view_HWC[..., 0], np.asarray(grey))


def test_a_plain_resize_without_crop_is_squash_to_the_size_itself():
    image, options = noise(431, 377), spec((50, 80), 1.0, "squash")
    expected = np.asarray(image.resize((80, 50), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(prepare(image, options).view_HWC, expected)


def test_squash_sees_the_whole_of_a_wide_image_where_a_centre_crop_loses_its_sides():
    image = noise(900, 300)
    np.testing.assert_allclose(prepare(image, spec(crop_pct=1.0, mode="squash")).box, (0, 0, 900, 300))
    np.testing.assert_allclose(prepare(image, spec(crop_pct=1.0)).box, (300, 0, 600, 300))


def test_the_box_of_a_border_reaches_beyond_the_image():
    # 900 × 300 into 224: 224 × 75, 74 rows above and 75 below, each 4 pixels of the original
    left, top, right, bottom = prepare(noise(900, 300), spec(crop_pct=1.0, mode="border")).box
    np.testing.assert_allclose((left, top, right, bottom), (0, -74 * 4, 900, 300 + 75 * 4))


def test_a_border_is_the_training_mean():
    view_HWC, _ = view(noise(900, 300), spec(crop_pct=1.0, mode="border"))
    assert (view_HWC[:74] == [124, 116, 104]).all()
    assert (view_HWC[-75:] == [124, 116, 104]).all()


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("sides", [(600, 400), (300, 800)])
def test_what_lies_at_a_place_of_the_image_is_found_there_again_from_the_view(mode, sides):
    # a white spot in a black image, seen by the network, put back where it was
    centre = sides[0] // 2 + 31, sides[1] // 2 - 17
    image = Image.new("RGB", sides)
    image.paste("white", (centre[0] - 8, centre[1] - 8, centre[0] + 8, centre[1] + 8))
    options = spec((128, 160), 0.9, mode, mean=(0.0, 0.0, 0.0))
    prepared = prepare(image, options)
    map_1HW = prepared.view_HWC[None, ..., 0].astype(np.float64)
    placed_HW = place_in_image(map_1HW, size=sides, box=prepared.box)[0]
    rows, columns = np.indices(placed_HW.shape)
    found = [float((axis * placed_HW).sum() / placed_HW.sum()) for axis in (columns, rows)]
    # centres of pixels lie half a pixel further than their corners
    np.testing.assert_allclose(found, (centre[0] - 0.5, centre[1] - 0.5), atol=1.0)


@pytest.mark.parametrize("size", [(20000, 2), (2, 20000)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_ribbons_are_prepared_in_every_mode(mode, size):
    image = Image.new("RGB", size, (124, 116, 104))
    view_HWC, _ = view(image, spec((64, 96), 0.9, mode))
    assert (view_HWC == (124, 116, 104)).all()


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_a_rectangle_that_would_need_padding_is_refused(mode):
    options = spec((64, 128), mode=mode)
    with pytest.raises(ModelError, match="resize=73×100 is below crop=64×128"):
        prepare(noise(9, 9), ModelSpec(**{**vars(options), "resize_width": 100}))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_every_channel_is_prepared_as_pillow_prepares_it_alone(mode):
    values_HWC = np.random.default_rng(0).integers(0, 256, (90, 70, 5), dtype=np.uint8)
    mean = (0.1, 0.2, 0.3, 0.4, 0.5)
    prepared = prepare(ChannelImage(values_HWC), spec((64, 48), 0.9, mode, mean=mean))
    for n in range(5):
        alone = Image.fromarray(values_HWC[..., n])
        expected = by_timm(alone, (64, 48), 0.9, mode, mean[n : n + 1], normalize=False)
        np.testing.assert_array_equal(prepared.view_HWC[..., n], expected[0].numpy())


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_deep_channels_are_resized_in_floats(mode):
    values_HWC = np.random.default_rng(0).random((90, 70, 2), np.float32)
    options = spec((64, 48), 1.0, mode, mean=(0.25, 0.5), interpolation="bilinear")
    prepared = prepare(ChannelImage(values_HWC), options)
    for n in range(2):
        # the same image in 8 bits is the same within what rounding takes, before and after resizing
        eight = Image.fromarray(np.rint(values_HWC[..., n] * 255).astype(np.uint8))
        expected = by_timm(eight, (64, 48), 1.0, mode, options.mean[n : n + 1], "bilinear", normalize=False)
        assert np.abs(prepared.view_HWC[..., n] * 255 - expected[0].numpy()).max() <= 1.51
        x_HW = (prepared.view_HWC[..., n] - np.float32(options.mean[n])) / np.float32(0.2)
        np.testing.assert_array_equal(prepared.x_CHW[n], x_HW)
    if mode == "border":
        assert (prepared.x_CHW[:, 0, 0] == 0).all()  # the mean, exactly


def test_an_rgb_image_for_a_model_of_six_channels_is_refused_with_what_it_needs():
    with pytest.raises(ImageError, match=r"takes 6 channels.*TIFF of 6 channels.*npy file of \(H, W, 6\)"):
        prepare(noise(9, 9), spec(mean=(0.5,) * 6))


@pytest.mark.parametrize("channels", [2, 7])
def test_an_image_of_other_channels_than_the_models_is_refused(channels):
    image = ChannelImage(np.zeros((9, 9, channels), np.uint8))
    with pytest.raises(ImageError, match=f"image of {channels} channels; net takes 6"):
        prepare(image, spec(mean=(0.5,) * 6))


@pytest.mark.parametrize(
    ("channels", "chosen", "shown"),
    [(1, (), (0, 0, 0)), (2, (), (0, 0, 0)), (4, (), (0, 1, 2)), (6, (3, 2, 1), (3, 2, 1)), (6, (4,), (4, 4, 4))],
)
def test_the_display_channels_are_what_is_shown(channels, chosen, shown):
    values_HWC = np.random.default_rng(0).integers(0, 256, (64, 64, channels), dtype=np.uint8)
    options = spec((64, 64), 1.0, mean=(0.5,) * channels, display_channels=chosen)
    prepared = prepare(ChannelImage(values_HWC), options)
    np.testing.assert_array_equal(prepared.display_HWC, values_HWC[..., list(shown)])
