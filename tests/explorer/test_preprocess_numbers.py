"""What the explorer's page makes of a picture, held against Pillow and against what the library feeds a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from node_bridge import NODE, JavaScriptError, NodeBridge, node_bridge
from PIL import Image

from convlens.image import prepare
from convlens.types import ModelSpec

pytestmark = pytest.mark.skipif(NODE is None, reason="no node on the PATH")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RESIZES = [("center", 24, 30), ("center", 31, 31), ("squash", 24, 27), ("border", 24, 24), ("border", 33, 21)]
SIZES = [(64, 48), (47, 63), (31, 31), (30, 40), (257, 30), (2, 3), (1, 1), (7, 200), (300, 9)]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeBridge]:
    with node_bridge(tmp_path_factory.mktemp("page")) as bridge:
        yield bridge


def spec(*, crop: int = 24, resize: int = 30, grey: bool = False, **fields: Any) -> ModelSpec:
    mean, std = (MEAN[:1], STD[:1]) if grey else (MEAN, STD)
    defaults = {"interpolation": "bicubic"} | fields
    return ModelSpec(
        "net", crop, resize, mean=mean, std=std, labels=("a", "b"), embedding_layer="fc", gradcam_layer="features",
        first_convolution="conv", weights_sha256="0" * 64, **defaults,
    )  # fmt: skip


def preprocessing(spec: ModelSpec) -> dict[str, Any]:
    names = ("channels", "input_size", "resize_size", "crop_mode", "interpolation", "mean", "std", "display_channels")
    return {name: getattr(spec, name) for name in names}


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng([width, height])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def decoded(image: Image.Image) -> dict[str, Any]:
    """As a canvas gives it."""
    return {"width": image.width, "height": image.height, "data": np.asarray(image.convert("RGBA")).reshape(-1)}


def assert_equal(found: dict[str, Any], image: Image.Image, spec: ModelSpec) -> None:
    expected, (height, width) = prepare(image, spec), spec.input_size
    rgba_HWC = found["display"].reshape(height, width, 4)
    np.testing.assert_array_equal(rgba_HWC[..., :3], expected.display_HWC)
    assert (rgba_HWC[..., 3] == 255).all()
    np.testing.assert_array_equal(found["x"].reshape(expected.x_CHW.shape), expected.x_CHW)
    box = found["box"]
    edges = box["left"], box["top"], box["left"] + box["width"], box["top"] + box["height"]
    np.testing.assert_allclose(edges, expected.box, rtol=0, atol=1e-6)  # its width is a difference of two edges
    assert (found["height"], found["width"]) == (height, width)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("mode", "crop", "resize"), RESIZES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_picture_is_prepared_byte_for_byte_as_the_library_does(node, size, mode, crop, resize, interpolation):
    image, options = noise(*size), spec(crop=crop, resize=resize, crop_mode=mode, interpolation=interpolation)
    assert_equal(node("preprocess", "prepare", decoded(image), preprocessing(options)), image, options)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("to", [(40, 30), (7, 5), (33, 90), (64, 48), (200, 3), (60, 40), (60, 39)], ids=str)
def test_a_squash_without_a_crop_is_pillows_resize(node, to, interpolation):
    image, (width, height) = noise(64, 48), to
    options = preprocessing(spec()) | {
        "crop_mode": "squash", "input_size": (height, width), "resize_size": (height, width),
        "interpolation": interpolation,
    }  # fmt: skip
    found = node("preprocess", "prepare", decoded(image), options)
    resized = np.asarray(image.resize(to, FILTERS[interpolation]))
    np.testing.assert_array_equal(found["display"].reshape(height, width, 4)[..., :3], resized)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(90, 61), (40, 200)], ids=str)
def test_rectangles_are_prepared_as_the_library_does(node, size, mode):
    options = spec(crop=20, crop_width=37, resize=25, resize_width=40, crop_mode=mode)
    assert_equal(node("preprocess", "prepare", decoded(noise(*size)), preprocessing(options)), noise(*size), options)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("mode", ["center", "border"])
def test_a_model_of_one_channel_sees_the_grey_that_pillow_makes(node, mode, interpolation):
    image, options = noise(75, 50), spec(grey=True, crop_mode=mode, interpolation=interpolation)
    assert_equal(node("preprocess", "prepare", decoded(image), preprocessing(options)), image, options)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(20000, 2), (2, 20001), (9000, 5)], ids=str)
def test_the_middle_of_a_ribbon_is_prepared_as_the_library_does(node, size, interpolation):
    image, options = noise(*size), spec(crop=56, resize=64, interpolation=interpolation)
    assert_equal(node("preprocess", "prepare", decoded(image), preprocessing(options)), image, options)


@pytest.mark.parametrize("file", ["astronaut.png", "coffee.png", "chelsea.png", "camera.png", "rocket.jpg"])
def test_photographs_are_prepared_at_full_size_as_the_library_does(node, file):
    path = Path(skimage.data.__file__).parent / file
    if not path.is_file():
        pytest.skip(f"scikit-image comes without {file}")
    image, options = Image.open(path).convert("RGB"), spec(crop=224, resize=256)
    assert_equal(node("preprocess", "prepare", decoded(image), preprocessing(options)), image, options)


def test_display_channels_are_shown_in_their_order(node):
    image, options = noise(64, 48), spec(display_channels=(2, 1, 0))
    assert_equal(node("preprocess", "prepare", decoded(image), preprocessing(options)), image, options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": None}, None),
        ({"channels": 4}, "takes 4; explain it by convlens explain"),
        ({"interpolation": "box"}, 'no interpolation "box"; there are: nearest, bilinear, bicubic, lanczos'),
        ({"crop_mode": "fit"}, 'no crop_mode "fit"; there are: center, squash, border'),
        ({"resize_size": (20, 20)}, "a resize to 20 x 20 is below the crop of 24 x 24"),
        ({"std": (1.0,)}, "mean and std have 3 and 1 values"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_preprocessing_that_means_nothing_is_refused_by_name(node, fields, message):
    options = preprocessing(spec()) | fields
    if message is None:
        (missing,) = fields
        del options[missing]
        message = f"preprocessing lacks {missing}; needed are: channels, input_size"
    with pytest.raises(JavaScriptError) as error:
        node("preprocess", "prepare", decoded(noise(40, 40)), options)
    assert message in str(error.value)
