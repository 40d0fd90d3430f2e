"""Images of other channels than RGB: read from TIFF and .npy, refused with what is needed, and shown."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from convlens.errors import ImageError, ImageTooLargeError
from convlens.image import (
    ChannelImage,
    Limits,
    decode_channels,
    display_image,
    displayed,
    encode_jpeg,
    encode_npy,
    encode_png,
    read_channels,
    read_shown,
)
from convlens.types import ModelSpec

HEIGHT, WIDTH = 11, 17


def spec(channels: int, *, shown: tuple[int, ...] = (), mean: float = 0.5, std: float = 0.1) -> ModelSpec:
    return ModelSpec("net", 8, 8, "bilinear", (mean,) * channels, (std,) * channels, ("a",), "fc", "features", "conv",
                     "0" * 64, display_channels=shown)  # fmt: skip


def noise(channels: int, dtype: str = "uint8") -> np.ndarray:
    rng = np.random.default_rng(channels)
    if dtype.startswith("float"):
        return rng.random((HEIGHT, WIDTH, channels)).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, channels), dtype=dtype, endpoint=True)


def unit(values: np.ndarray) -> np.ndarray:
    """As a model is to see them: uint8 as they are, all else on the scale of 0..1."""
    if values.dtype == np.uint8:
        return values
    return (values / 65535 if values.dtype == np.uint16 else values).astype(np.float32)


def tiff(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def saved(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def decoded(data: bytes, channels: int, **options) -> np.ndarray:
    image = decode_channels(data, channels, **options)
    assert isinstance(image, ChannelImage)
    assert image.size == (WIDTH, HEIGHT)
    return image.values_HWC


DTYPES = ["uint8", "uint16", "float32"]


@pytest.mark.parametrize("dtype", [*DTYPES, "float64", "float16"])
@pytest.mark.parametrize("channels", [1, 2, 4, 6, 13])
def test_an_npy_file_is_read_as_numpy_wrote_it(channels, dtype):
    values = noise(channels, dtype)
    result = decoded(saved(values), channels)
    np.testing.assert_allclose(result, unit(values), rtol=1e-7)
    assert result.dtype == (np.uint8 if dtype == "uint8" else np.float32)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_any_order_of_an_npy_file_is_read(byte_order, order):
    values = np.asarray(noise(4, "uint16"), byte_order + "u2", order=order)
    np.testing.assert_allclose(decoded(saved(values), 4), values / 65535, rtol=1e-6)


def test_a_grey_npy_file_may_have_two_axes():
    values = noise(1)[..., 0]
    np.testing.assert_array_equal(decoded(saved(values), 1)[..., 0], values)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [2, 4, 6])
def test_a_tiff_is_read_with_its_channels_interleaved_or_in_planes(channels, dtype, planar):
    values = noise(channels, dtype)
    stored = values if planar == "contig" else values.transpose(2, 0, 1)
    data = tiff(stored, photometric="minisblack", planarconfig=planar)
    np.testing.assert_allclose(decoded(data, channels), unit(values), rtol=1e-7)


@pytest.mark.parametrize(
    "options", [{"compression": "zlib"}, {"tile": (16, 16)}, {"bigtiff": True}, {"byteorder": ">"}, {"rowsperstrip": 3}]
)
def test_other_layouts_of_a_tiff_are_read(options):
    values = noise(6, "uint16")
    data = tiff(values, photometric="minisblack", planarconfig="contig", **options)
    np.testing.assert_allclose(decoded(data, 6), unit(values), rtol=1e-7)


def test_a_tiff_may_have_a_channel_a_page():
    values = noise(6, "uint16")
    data = tiff(values.transpose(2, 0, 1), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert len(file.pages) == 6
    np.testing.assert_allclose(decoded(data, 6), unit(values), rtol=1e-7)


def test_a_tiff_of_colours_and_alpha_has_four_channels():
    values = noise(4)
    data = tiff(values, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(decoded(data, 4), values)


def test_three_channels_are_decoded_as_ever():
    values = noise(3)
    image = decode_channels(encode_png(values), 3)
    assert isinstance(image, Image.Image)
    np.testing.assert_array_equal(np.asarray(image), values)


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_a_jpeg_for_other_channels_is_refused_with_what_is_needed(channels):
    with pytest.raises(ImageError) as caught:
        decode_channels(encode_jpeg(noise(3)), channels)
    assert caught.value.status == 400
    assert caught.value.message == (
        f"the model takes {channels} channels, which a JPEG has not; send a TIFF of {channels} channels, or a .npy "
        f"file of (H, W, {channels}) in uint8, uint16 or floats of 0..1"
    )


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (tiff(noise(4), photometric="rgb", extrasamples=["unassalpha"]), "a TIFF of 4 channels; send a TIFF of 6"),
        (tiff(noise(3)), "a TIFF of 3 channels; send a TIFF of 6"),
        (tiff(noise(5).transpose(2, 0, 1), photometric="minisblack", metadata=None), "of 1 channel on 5 pages"),
        (tiff(noise(6).astype(np.int32), photometric="minisblack", planarconfig="contig"), "a TIFF of int32"),
        (tiff(noise(6, "float32") * 300, photometric="minisblack", planarconfig="contig"), "only 0..1 is known"),
        (tiff(noise(6), photometric="minisblack", planarconfig="contig")[:500], "damaged or of a rare kind"),
        (saved(noise(5)), "an npy file of shape (11, 17, 5)"),
        (saved(noise(6).transpose(2, 0, 1)), "an npy file of shape (6, 11, 17)"),
        (saved(noise(6)[..., 0]), "an npy file of shape (11, 17)"),
        (saved(noise(6).astype(np.int64)), "an npy file of int64"),
        (saved(noise(6).astype(bool)), "of plain numbers"),
        (saved(noise(6).astype(complex)), "of plain numbers"),
        (saved(noise(6, "float32") - 0.5), "floats from -0.49"),
        (saved(np.full((3, 3, 6), np.nan)), "floats from nan to nan"),
        (saved(np.zeros((0, 3, 6))), "shape (0, 3, 6)"),
        (saved(noise(6))[:-1], "send the whole file"),
        (saved(noise(6)) + b"x", "send the whole file"),
        (b"\x93NUMPY\x01\x00\x02\x00{}", "a damaged npy file"),
        (b"\x93NUMPY\x07\x00", "a damaged npy file"),
        (b"\x93NUMPY", "a damaged npy file"),
        (b"II\x2a\x00", "a damaged TIFF"),
        (b"<html>", "an HTML page is not an image"),
    ],
)
def test_what_does_not_fit_is_refused(data, told):
    with pytest.raises(ImageError) as caught:
        decode_channels(data, 6)
    assert told in caught.value.message
    assert "\n" not in caught.value.message


def test_an_npy_header_that_claims_more_than_there_is_reserves_nothing():
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": (4900, 4900, 6), "fortran_order": False, "descr": "<f8"})
    with pytest.raises(ImageError, match="with 0 bytes of values"):  # 1.2 GB claimed
        decode_channels(file.getvalue(), 6)


def test_objects_in_an_npy_file_are_never_unpickled():
    file = io.BytesIO()
    np.save(file, np.full((2, 2, 6), None, object), allow_pickle=True)
    with pytest.raises(ImageError, match="of plain numbers"):
        decode_channels(file.getvalue(), 6)


@pytest.mark.parametrize("limits", [Limits(pixels=HEIGHT * WIDTH - 1), Limits(bytes=500)], ids=["pixels", "bytes"])
@pytest.mark.parametrize("encode", [saved, tiff], ids=["npy", "tiff"])
def test_limits_are_checked_before_pixels_are_read(encode, limits):
    options = {"photometric": "minisblack", "planarconfig": "contig"} if encode is tiff else {}
    with pytest.raises(ImageTooLargeError):
        decode_channels(encode(noise(6), **options), 6, limits=limits)


@pytest.mark.parametrize("encode", [saved, tiff], ids=["npy", "tiff"])
def test_many_channels_may_have_as_many_values_as_a_colour_image_of_the_most_pixels(encode):
    options = {"photometric": "minisblack", "planarconfig": "contig"} if encode is tiff else {}
    data, pixels = encode(noise(6), **options), HEIGHT * WIDTH
    assert decode_channels(data, 6, limits=Limits(pixels=2 * pixels)).size == (WIDTH, HEIGHT)
    with pytest.raises(ImageTooLargeError, match="in 6 channels"):
        decode_channels(data, 6, limits=Limits(pixels=2 * pixels - 1))


def test_a_local_file_of_many_channels_may_be_larger_than_what_is_sent(tmp_path):
    values = np.zeros((1000, 1000, 13), np.uint16)  # 26 MB
    np.save(tmp_path / "scene.npy", values)
    assert read_channels(tmp_path / "scene.npy", 13).size == (1000, 1000)
    with pytest.raises(ImageTooLargeError, match="26000128 bytes; at most 20971520"):
        decode_channels(saved(values), 13)


def test_without_tifffile_a_tiff_is_refused_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImageError, match=r"pip install 'convlens\[tiff\]'"):
        decode_channels(tiff(noise(6), photometric="minisblack", planarconfig="contig"), 6)


def test_a_files_errors_name_it(tmp_path):
    path = tmp_path / "scene.npy"
    path.write_bytes(saved(noise(5)))
    with pytest.raises(ImageError, match=r"scene\.npy: an npy file of shape \(11, 17, 5\)"):
        read_channels(path, 6)
    assert read_channels(path, 5).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("values", [noise(6), noise(6, "uint16"), noise(2, "float32")])
def test_what_is_encoded_as_npy_is_read_by_numpy(values):
    np.testing.assert_array_equal(np.load(io.BytesIO(encode_npy(values)), allow_pickle=False), values)


# ---- what is shown


def test_grey_is_shown_grey():
    shown = displayed(noise(1), spec(1))
    for channel in range(3):
        np.testing.assert_array_equal(shown[..., channel], noise(1)[..., 0])


def test_deep_channels_are_shown_from_two_and_a_half_deviations_below_the_mean_to_as_many_above():
    values = np.array([[[0.25, 0.5, 0.75], [0.0, 1.0, 0.55]]], np.float32)
    shown = displayed(values, spec(3, mean=0.5, std=0.1))
    # ±0.25 is 0 and 255; 0.55 is a tenth of the range above the middle: 0.6 · 255 = 153
    assert shown.tolist() == [[[0, 128, 255], [0, 255, 153]]]


def test_the_whole_image_is_shown_by_the_display_channels():
    values = noise(6)
    np.testing.assert_array_equal(display_image(ChannelImage(values), spec(6, shown=(5, 3, 1))), values[..., [5, 3, 1]])


def test_an_rgb_image_is_shown_grey_to_a_model_of_grey():
    image = Image.fromarray(noise(3))
    np.testing.assert_array_equal(display_image(image, spec(1))[..., 1], np.asarray(image.convert("L")))


@pytest.mark.parametrize("encode", [saved, tiff], ids=["npy", "tiff"])
def test_files_of_any_channels_can_be_looked_at(encode, tmp_path):
    options = {"photometric": "minisblack", "planarconfig": "contig"} if encode is tiff else {}
    (tmp_path / "scene").write_bytes(encode(noise(6), **options))
    np.testing.assert_array_equal(np.asarray(read_shown(tmp_path / "scene")), noise(6)[..., :3])
    deep = noise(6, "uint16")
    (tmp_path / "deep").write_bytes(encode(deep, **options))
    shown, first = np.asarray(read_shown(tmp_path / "deep")), deep[..., :3].astype(float)
    assert np.abs(shown - (first - first.min()) / (first.max() - first.min()) * 255).max() <= 0.51
