"""Every way of storing colour comes out as the right RGB."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from image_files import chunk, grey, pixels, png, saved, tiff, tiff_by_hand
from PIL import Image

from convlens.errors import ImageError
from convlens.image import decode
from convlens.image.modes import to_rgb

RAMP = np.array([[0, 100, 32768 // 257, 255]], np.uint8)
RAMP16 = np.array([[0, 25700, 32768, 65535]], np.uint16)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved(RAMP16, "PNG"), id="png"),
        *[
            pytest.param(tiff(RAMP16, **options), id=f"tiff {options}")
            for options in ({}, {"byteorder": ">"}, {"compression": "zlib"}, {"bigtiff": True},
                            {"compression": "zlib", "byteorder": ">"})
        ],
    ],
)  # fmt: skip
def test_sixteen_bit_grey_is_scaled_and_not_clipped(data):
    assert grey(data) == [0, 100, 128, 255]  # v / 257, rounded: 32768 / 257 = 127.502


def test_sixteen_bit_grey_counted_from_white_is_turned_round():
    assert grey(tiff(RAMP16, photometric="miniswhite")) == [255, 155, 127, 0]


def test_twelve_bit_tiffs_reach_white():
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 200), (277, 1), (278, 1), (279, 3)]
    head = tiff_by_hand(*[(tag, 3, 1, value) for tag, value in tags])
    assert grey(head.ljust(200, b"\0") + bytes([0xFF, 0xF8, 0x00])) == [255, 128]  # 0xFFF and 0x800 of 12 bits


@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"compression": "zlib"},
                                     {"compression": "zlib", "planarconfig": "separate"}])  # fmt: skip
def test_sixteen_bit_colour_keeps_its_high_bytes(options):
    colours = np.array([[[0, 25700, 65535], [30000, 1, 2]]], np.uint16)
    values = np.moveaxis(colours, 2, 0).copy() if "planarconfig" in options else colours
    assert pixels(tiff(values, photometric="rgb", **options)).tolist() == [[[0, 100, 255], [117, 0, 0]]]


def test_sixteen_bit_colour_png():
    row = struct.pack(">6H", 0, 25700, 65535, 30000, 1, 2)
    assert pixels(png((2, 1), 16, 2, row)).tolist() == [[[0, 100, 255], [117, 0, 0]]]


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_an_image_that_pillow_has_misread_is_refused():
    planes = np.uint16([[[0, 9]], [[1, 8]], [[2, 7]]])
    with pytest.raises(ImageError, match=r"Pillow misreads \(3 samples of 16-bit whole numbers in separate planes"):
        to_rgb(opened(tiff(planes, photometric="rgb", planarconfig="separate")))
    with pytest.raises(ImageError, match="signed 8-bit"):
        to_rgb(opened(tiff(np.array([[-1, 5]], np.int8))))


def test_floats_from_zero_to_one_are_scaled_and_others_refused():
    assert grey(tiff(np.array([[0, 0.5, 1]], np.float32))) == [0, 128, 255]
    with pytest.raises(ImageError, match=r"floats from 0 to 1\.5; only 0\.\.1"):
        decode(tiff(np.array([[0, 1.5]], np.float32)))
    with pytest.raises(ImageError, match="nan"):
        decode(tiff(np.array([[0, np.nan]], np.float32)))


def test_whole_numbers_in_memory_are_taken_as_sixteen_bit_and_refused_beyond():
    assert np.asarray(to_rgb(Image.fromarray(np.array([[0, 25700, 65535]], np.int32))))[0, :, 0].tolist() == [
        0,
        100,
        255,
    ]
    with pytest.raises(ImageError, match=r"from 0 to 70000; only 0\.\.65535"):
        to_rgb(Image.fromarray(np.array([[0, 70000]], np.int32)))
    with pytest.raises(ImageError, match="from -1 to 5"):
        to_rgb(Image.fromarray(np.array([[-1, 5]], np.int32)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_the_result_is_always_another_image(mode):
    image = Image.new(mode, (2, 2))
    assert to_rgb(image) is not image


@pytest.mark.parametrize("mode", ["LA", "La", "RGBa", "PA", "I;16", "I", "F"])
def test_an_image_of_several_bands_of_rows_is_converted_whole(mode):
    band = 2**18 // 3000  # rows of which the conversion takes at a time
    height = 2 * band + 5
    ramp = np.linspace(0, 255, height).round().astype(np.uint8)[:, None].repeat(3000, 1)
    grey = Image.fromarray(ramp)
    match mode:
        case "I;16":
            image = Image.fromarray(ramp.astype(np.uint16) * 257)
        case "I":
            image = Image.fromarray(ramp.astype(np.int32) * 257)
        case "F":
            image = Image.fromarray(ramp.astype(np.float32) / 255)
        case "PA":
            image = grey.convert("P").convert("PA")
        case "RGBa":
            image = grey.convert("RGBA").convert("RGBa")
        case _:
            image = grey.convert("LA").convert(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), ramp[..., None].repeat(3, 2))


def test_one_bit_grey_and_palette_images():
    bits = Image.fromarray(np.array([[0, 255, 255, 0]], np.uint8)).convert("1")
    assert grey(saved(bits, "PNG")) == grey(saved(bits, "BMP")) == [0, 255, 255, 0]
    assert grey(saved(bits, "TIFF", compression="group4")) == [0, 255, 255, 0]
    assert grey(saved(RAMP, "PNG")) == grey(saved(RAMP, "TIFF")) == RAMP[0].tolist()
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    for form in ("PNG", "GIF", "BMP", "TIFF"):
        assert pixels(saved(palette, form)).tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_transparent_palette_entries_turn_white(form):
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    assert pixels(saved(palette, form, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_half_transparent_palette_entries_mix_with_white():
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    # 200 * 51/255 + 255 * 204/255 = 244, 100 -> 224, 50 -> 214
    assert pixels(saved(palette, "PNG", transparency=bytes([255, 51]))).tolist() == [[[10, 20, 30], [244, 224, 214]]]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_alpha_lies_on_white(form):
    rgba = np.array([[[200, 100, 50, 51], [1, 2, 3, 0], [1, 2, 3, 255]]], np.uint8)
    expected = [[[244, 224, 214], [255, 255, 255], [1, 2, 3]]]
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    assert pixels(saved(rgba, form, **options)).tolist() == expected


def test_grey_with_alpha_lies_on_white():
    la = Image.fromarray(np.array([[[100, 51], [9, 0]]], np.uint8), "LA")
    assert grey(saved(la, "PNG")) == grey(saved(la, "TIFF")) == [224, 255]
    assert grey(png((2, 1), 16, 4, struct.pack(">4H", 25700, 13107, 9, 0))) == [224, 255]
    # premultiplied (ExtraSamples 1): 20 of 100 at alpha 51/255 = .2
    la_premultiplied = tiff(np.array([[[20, 51], [0, 0]]], np.uint8), photometric="minisblack", extrasamples=[1],
                            planarconfig="contig")  # fmt: skip
    assert grey(la_premultiplied) == [224, 255]


@pytest.mark.parametrize(
    ("depth", "colour_type", "row", "key", "expected"),
    [
        (1, 0, b"\x80", (1,), [[255] * 3, [0] * 3]),
        (2, 0, b"\x40", (1,), [[255] * 3, [0] * 3]),
        (4, 0, b"\x34", (3,), [[255] * 3, [68] * 3]),
        (8, 0, b"\x05\x06", (5,), [[255] * 3, [6] * 3]),
        (16, 0, struct.pack(">2H", 25700, 25701), (25700,), [[255] * 3, [100] * 3]),
        (8, 2, bytes([1, 2, 3, 4, 5, 6]), (1, 2, 3), [[255] * 3, [4, 5, 6]]),
        (16, 2, struct.pack(">6H", 30000, 1, 2, 40000, 5, 6), (30000, 1, 2), [[255] * 3, [156, 0, 0]]),
    ],
)
def test_a_transparent_colour_turns_white_at_every_depth(depth, colour_type, row, key, expected):
    transparent = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    assert pixels(png((2, 1), depth, colour_type, row, transparent)).tolist() == [expected]


def test_adobe_cmyk_jpegs_and_cmyk_tiffs_come_out_right():
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:, 8:] = (255, 0, 0, 51)  # cyan with a fifth of black: (1-c)(1-k) = 0, .8, .8
    cmyk = Image.fromarray(inks, "CMYK")
    expected = np.zeros((16, 16, 3), np.uint8)
    expected[:, :8], expected[:, 8:] = 255, (0, 204, 204)
    np.testing.assert_array_equal(pixels(saved(cmyk, "TIFF")), expected)
    # flat 8 x 8 blocks survive JPEG up to its rounding
    np.testing.assert_allclose(pixels(saved(cmyk, "JPEG", quality=100, subsampling=0)), expected.astype(float), atol=3)


def srgb_of_lab(lab: np.ndarray) -> np.ndarray:
    """CIE 15:2004 back from L*a*b* (D50), then the D50-adapted sRGB matrix and the sRGB curve (IEC 61966-2-1)."""
    f_y = (lab[..., 0] + 16) / 116
    f_xyz = np.stack([f_y + lab[..., 1] / 500, f_y, f_y - lab[..., 2] / 200], -1)
    xyz = np.where(f_xyz > 6 / 29, f_xyz**3, 3 * (6 / 29) ** 2 * (f_xyz - 4 / 29)) * (0.96422, 1, 0.82521)
    matrix = [
        (3.1338561, -1.6168667, -0.4906146),
        (-0.9787684, 1.9161415, 0.033454),
        (0.0719453, -0.2289914, 1.4052427),
    ]
    linear = (xyz @ np.transpose(matrix)).clip(0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear) * 255


def test_lab_tiffs_follow_cielab():
    lab = np.array([[[50, 0, 0], [60, 30, -20], [80, -20, 40]]], float)
    stored = np.stack([lab[..., 0] * 2.55, lab[..., 1], lab[..., 2]], -1).round().astype(np.int16).astype(np.uint8)
    result = pixels(tiff(stored, photometric="cielab"))
    np.testing.assert_allclose(result, srgb_of_lab(lab), atol=2)  # 8-bit L* is 0.4 wide
