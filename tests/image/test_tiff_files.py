"""TIFFs of every layout, written by tifffile with known samples."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys

import numpy as np
import pytest
from image_files import grey, pixels, tiff

from convlens.errors import ImageError, ImageTooLargeError
from convlens.image import Limits, decode
from convlens.image.tiff import read_tiff

SIZE = (20, 18)
ALPHA = {None: None, "unspecified": None, "unassalpha": "straight", "assocalpha": "premultiplied"}
LAYOUTS = [
    (photometric, kind, extra, planar)
    for photometric, kind, extra, planar in itertools.product(
        ("minisblack", "miniswhite", "rgb"), ("u1", "u2", "f2", "f4", "f8"), ALPHA, ("contig", "separate")
    )
    if not (photometric != "rgb" and extra is None and planar == "separate")
    and not (photometric == "miniswhite" and extra)
]
# Each is a way to store the same samples; together they take every value of every option.
WAYS = [
    {},
    {"byteorder": ">"},
    {"bigtiff": True},
    {"bigtiff": True, "byteorder": ">"},
    {"compression": "zlib"},
    {"compression": "zlib", "predictor": True, "byteorder": ">", "bigtiff": True},
    {"compression": "lzw", "tile": (16, 16)},
    {"compression": "packbits", "rowsperstrip": 7},
    {"compression": "zstd", "byteorder": ">", "rowsperstrip": 7},
    {"tile": (16, 16), "byteorder": ">"},
]


def samples(kind: str, channels: int) -> np.ndarray:
    rng = np.random.default_rng(channels)
    if kind.startswith("f"):
        return rng.random((*SIZE, channels)).astype(kind)
    return rng.integers(0, np.iinfo(kind).max, (*SIZE, channels), dtype=kind, endpoint=True)


def on_white(values_HWC: np.ndarray, photometric: str, alpha: str | None) -> np.ndarray:
    """The samples as 0..255 in floats, on white: TIFF 6.0's ExtraSamples in plain arithmetic."""
    full = 1 if values_HWC.dtype.kind == "f" else np.iinfo(values_HWC.dtype).max
    levels = values_HWC * (255 / full)
    colours = levels[..., : 3 if photometric == "rgb" else 1].astype(float)
    if photometric == "miniswhite":
        colours = 255 - colours
    if alpha:
        opacity = levels[..., colours.shape[2], None] / 255
        colours = (colours * opacity if alpha == "straight" else colours) + 255 * (1 - opacity)
    return np.broadcast_to(colours, (*SIZE, 3))


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(("photometric", "kind", "extra", "planar"), LAYOUTS)
def test_every_layout_comes_out_as_tifffile_wrote_it(photometric, kind, extra, planar, way):
    if "compression" in way:
        pytest.importorskip("imagecodecs")  # tifffile writes with it too
    colours = 3 if photometric == "rgb" else 1
    values = samples(kind, colours + (extra is not None))
    if ALPHA[extra] == "premultiplied":
        values[..., :-1] = np.minimum(values[..., :-1], values[..., -1:])
    stored = np.moveaxis(values, 2, 0).copy() if planar == "separate" else values
    options = {"photometric": photometric, "extrasamples": [extra] if extra else None, "metadata": None} | way
    if values.shape[2] > 1:
        options["planarconfig"] = planar
    data = tiff(stored if values.shape[2] > 1 else values[..., 0], **options)
    # 16-bit colour with alpha goes by its high bytes, and is divided by the alpha and multiplied by it again.
    tolerance = 3.1 if (photometric, kind) == ("rgb", "u2") and ALPHA[extra] else 1.5
    result = pixels(data).astype(float)
    np.testing.assert_allclose(result, on_white(values, photometric, ALPHA[extra]), atol=tolerance)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_bigtiff_keeps_every_sample_in_either_byte_order(order):
    values = samples("u1", 3)
    data = tiff(values, photometric="rgb", bigtiff=True, byteorder=order, rowsperstrip=3)
    np.testing.assert_array_equal(pixels(data), values)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_cmyk_planes_are_inks(planar):
    inks = np.zeros((2, 3, 4), np.uint8)
    inks[0, 0], inks[0, 1], inks[1, 2] = (255, 0, 0, 0), (0, 255, 0, 51), (0, 0, 0, 255)
    expected = np.full((2, 3, 3), 255)
    expected[0, 0], expected[0, 1], expected[1, 2] = (0, 255, 255), (204, 0, 204), 0  # (1 - ink) (1 - black)
    stored = np.moveaxis(inks, 2, 0).copy() if planar == "separate" else inks
    result = pixels(tiff(stored, photometric="separated", planarconfig=planar))
    np.testing.assert_allclose(result.astype(float), expected, atol=1)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_an_orientation_turns_samples_of_every_layout(planar):
    upright = np.zeros((2, 3, 3), np.float32)
    upright[0, 0] = (1, 0, 0)
    stored = np.rot90(upright)  # what a camera that calls it 6 has written
    if planar == "separate":
        stored = np.moveaxis(stored, 2, 0)
    data = tiff(stored.copy(), photometric="rgb", planarconfig=planar, extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(pixels(data), upright * 255)


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "u4", "u8"])
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_numbers_of_unknown_brightness_are_refused_whatever_their_values(kind, channels):
    values = np.zeros((2, 2, channels), kind).squeeze()
    with pytest.raises(ImageError, match=f"{8 * int(kind[1])}-bit whole numbers, whose brightness is not known"):
        decode(tiff(values, photometric="rgb" if channels == 3 else "minisblack"))


@pytest.mark.parametrize("wrong", [1.5, -0.1, np.nan, np.inf])
def test_floats_out_of_range_in_one_place_of_a_colour_image_are_refused(wrong):
    values = np.zeros((40, 40, 3), np.float32)
    values[39, 39, 2] = wrong
    with pytest.raises(ImageError, match=r"an image of floats from .*; only 0\.\.1 has a known brightness"):
        decode(tiff(values, photometric="rgb", rowsperstrip=8))


def test_planes_that_reach_past_the_end_are_refused():
    data = tiff(np.zeros((2, 9, 9), np.uint8), photometric="minisblack", planarconfig="separate", extrasamples=[2])
    with pytest.raises(ImageError, match="its pixels reach to byte"):
        decode(data[:-1])


def test_a_layout_that_nothing_here_reads_is_refused_and_named():
    data = bytearray(tiff(np.zeros((9, 9, 3), np.float32), photometric="rgb"))
    at = data.index(struct.pack("<HHL", 262, 3, 1)) + 8
    data[at : at + 2] = struct.pack("<H", 8)
    with pytest.raises(ImageError, match="3 samples of 32-bit floats side by side, of photometric kind 8"):
        decode(bytes(data))


def test_strips_that_need_much_more_memory_than_the_image_are_refused():
    data = bytearray(tiff(np.zeros((2400, 2400, 3), np.float32), photometric="rgb", rowsperstrip=2400))
    at = data.index(struct.pack("<HHL", 259, 3, 1)) + 8
    data[at : at + 2] = struct.pack("<H", 8)  # called deflated: refused before anything is unpacked
    with pytest.raises(ImageTooLargeError, match="of 65 MiB once unpacked; at most 64 MiB"):
        decode(bytes(data), limits=Limits(bytes=10**8))


def test_very_many_strips_are_refused():
    data = tiff(np.zeros((2**17 + 1, 1), np.uint8), rowsperstrip=1)
    with pytest.raises(ImageError, match="131073 strips or tiles; at most 16449"):
        decode(data)


def test_the_extent_is_that_of_the_image_or_of_a_larger_tile():
    assert read_tiff(tiff(np.zeros((40, 30), np.uint8))).extent == (30, 40)
    assert read_tiff(tiff(np.zeros((3, 2), np.uint8), tile=(32, 16))).extent == (16, 32)


WITHOUT = """
import sys
sys.modules[{missing!r}] = None
from convlens.errors import ImageError
from convlens.image import Limits, decode
try:
    print(decode(sys.stdin.buffer.read()).size)
except ImageError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("missing", "options", "said"),
    [
        ("tifffile", {}, "needs tifffile and imagecodecs: pip install 'convlens[tiff]'"),
        ("imagecodecs", {"compression": "lzw"}, "needs tifffile and imagecodecs: pip install 'convlens[tiff]'"),
        ("imagecodecs", {}, "(9, 9)"),
    ],
)
def test_without_the_extra_an_error_names_it(missing, options, said):
    if options:
        pytest.importorskip("imagecodecs")  # tifffile writes with it too
    data = tiff(np.zeros((9, 9, 3), np.float32), photometric="rgb", **options)
    code = WITHOUT.format(missing=missing)
    result = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert said in result.stdout.decode()


def test_planes_of_grey_and_alpha_that_pillow_turns_white_keep_their_grey():
    planes = np.array([[[10, 200, 90]], [[255, 51, 0]]], np.uint8)  # grey, alpha; 200 at a fifth is 244
    options = {"photometric": "minisblack", "planarconfig": "separate", "extrasamples": ["unassalpha"]}
    assert grey(tiff(planes, **options)) == [10, 244, 255]


@pytest.mark.parametrize(
    ("tag", "value", "reason"),
    [
        (278, 1, "it has 1 strips or tiles of the 9 that its size needs"),
        (277, 60000, "which is not read"),
        (257, 0, "its 9 x 0 pixels"),
    ],
)
def test_a_layout_that_its_tags_contradict_is_refused_before_anything_is_unpacked(tag, value, reason):
    data = bytearray(tiff(np.zeros((9, 9, 3), np.float32), photometric="rgb"))
    at = next(data.index(struct.pack("<HH", tag, kind)) for kind in (3, 4) if struct.pack("<HH", tag, kind) in data) + 8
    data[at : at + 4] = struct.pack("<L", value)
    with pytest.raises(ImageError, match=reason):
        decode(bytes(data))


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_bands_of_a_scene_are_not_taken_for_grey(planar: str) -> None:
    values = np.zeros((6, 9, 9) if planar == "separate" else (9, 9, 6), np.uint16)
    with pytest.raises(ImageError, match="6 channels that are no colours"):
        decode(tiff(values, photometric="minisblack", planarconfig=planar))
