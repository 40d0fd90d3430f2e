from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torchvision import transforms

from convlens.errors import ModelError
from convlens.image import denormalise, encode_jpeg, encode_png, normalise, prepare, thumbnail
from convlens.types import ModelSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODES = {
    "nearest": transforms.InterpolationMode.NEAREST,
    "bilinear": transforms.InterpolationMode.BILINEAR,
    "bicubic": transforms.InterpolationMode.BICUBIC,
    "lanczos": transforms.InterpolationMode.LANCZOS,
}


def spec(*, crop: int = 224, resize: int = 256, interpolation: str = "bicubic") -> ModelSpec:
    return ModelSpec("net", crop, resize, interpolation, MEAN, STD, ("a", "b"), "fc", "features", "conv", "0" * 64)


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng([width, height])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_torchvision(image: Image.Image, spec: ModelSpec) -> torch.Tensor:
    return transforms.Compose(
        [
            transforms.Resize(spec.resize, MODES[spec.interpolation]),
            transforms.CenterCrop(spec.crop),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )(image)


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize(
    "size",
    [(500, 375), (375, 500), (256, 256), (257, 301), (301, 257), (1, 1), (3, 2), (33, 400), (900, 31), (1000, 4),
     (4, 1000), (640, 481), (255, 999)],
)  # fmt: skip
def test_it_equals_torchvision_bit_for_bit(size, interpolation):
    image, options = noise(*size), spec(interpolation=interpolation)
    prepared = prepare(image, options)
    np.testing.assert_array_equal(prepared.x_CHW, by_torchvision(image, options).numpy())
    assert prepared.x_CHW.dtype == np.float32
    assert prepared.x_CHW.flags.c_contiguous


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (255, 224), (256, 227), (227, 227), (64, 63), (235, 224)])
def test_odd_margins_are_rounded_as_torchvision_rounds_them(resize, crop):
    image, options = noise(431, 377), spec(resize=resize, crop=crop)
    np.testing.assert_array_equal(prepare(image, options).x_CHW, by_torchvision(image, options).numpy())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(6000, 8), (8, 6000)])
def test_the_middle_of_a_ribbon_equals_torchvision_within_a_level(size, interpolation):
    image, options = noise(*size), spec(interpolation=interpolation)  # 192000 x 256 when resized
    expected = denormalise(by_torchvision(image, options).numpy(), options)
    difference = prepare(image, options).view_HWC.astype(int) - expected
    assert np.abs(difference).max() <= 1  # filter weights from float32 coordinates


@pytest.mark.parametrize("size", [(20000, 2), (3, 16_000_000)])
def test_long_ribbons_take_no_more_memory_than_they_have(size):
    image = Image.new("RGB", size, (10, 20, 30))  # in full they would take 2.6 GB and 1.4 TB
    assert (prepare(image, spec()).view_HWC == (10, 20, 30)).all()


def test_the_box_says_what_part_of_the_original_is_seen():
    prepared = prepare(noise(512, 1024), spec())
    # 512 -> 256 halves it: 256 x 512, crop from (16, 144), twice that in the original
    assert prepared.box == (32, 288, 480, 736)


def test_pixels_at_the_boxs_corners_are_at_the_views_corners():
    image = Image.new("RGB", (600, 400), "black")
    left, top, right, bottom = prepare(image, spec()).box
    image.paste("red", (round(left), round(top), round(left) + 20, round(top) + 20))
    image.paste("blue", (round(right) - 20, round(bottom) - 20, round(right), round(bottom)))
    view_HWC = prepare(image, spec()).view_HWC
    assert view_HWC[3, 3].tolist() == [255, 0, 0]
    assert view_HWC[-4, -4].tolist() == [0, 0, 255]


def test_the_view_holds_the_very_pixels_that_were_normalised():
    prepared = prepare(Image.fromarray(skimage.data.chelsea()), spec())
    assert prepared.view_HWC.shape == (224, 224, 3)
    np.testing.assert_array_equal(normalise(prepared.view_HWC, spec()), prepared.x_CHW)
    np.testing.assert_array_equal(denormalise(prepared.x_CHW, spec()), prepared.view_HWC)


def test_normalising_and_back_is_exact_for_every_value():
    view_HWC = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    np.testing.assert_array_equal(denormalise(normalise(view_HWC, spec()), spec()), view_HWC)


def test_denormalise_clips_and_refuses_what_is_no_number():
    x_CHW = np.full((3, 1, 2), 100.0)
    x_CHW[:, :, 1] = -100
    assert denormalise(x_CHW, spec()).tolist() == [[[255] * 3, [0] * 3]]
    x_CHW[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        denormalise(x_CHW, spec())


def test_a_spec_that_would_need_padding_is_refused():
    with pytest.raises(ModelError, match="resize=200 is below crop=224"):
        prepare(noise(300, 300), spec(resize=200))


def test_wrong_modes_and_shapes_are_programming_errors():
    with pytest.raises(ValueError, match="mode L"):
        prepare(Image.new("L", (9, 9)), spec())
    with pytest.raises(ValueError, match=r"float64 of shape \(2, 2, 3\)"):
        normalise(np.zeros((2, 2, 3)), spec())
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        encode_png(np.zeros((2, 2), np.uint8))


def test_png_keeps_every_pixel_and_jpeg_comes_close():
    coffee = skimage.data.coffee()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(coffee[:, ::-1])))), coffee[:, ::-1])
    jpeg = Image.open(io.BytesIO(encode_jpeg(coffee)))
    assert jpeg.format == "JPEG"
    assert np.abs(np.asarray(jpeg) - coffee.astype(float)).mean() < 3
    assert len(encode_jpeg(coffee, quality=30)) < len(encode_jpeg(coffee)) / 2


@pytest.mark.parametrize("size", [(300, 100), (100, 300)])
def test_a_thumbnail_is_the_centre_square(size):
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2 - 50, size[1] // 2 - 50, size[0] // 2 + 50, size[1] // 2 + 50))
    small = Image.open(io.BytesIO(thumbnail(image, side=40)))
    assert (small.format, small.size) == ("JPEG", (40, 40))
    np.testing.assert_allclose(np.asarray(small)[..., 2], 254, atol=2)  # JPEG's blue
