"""PNGs written by hand from the specification, with known pixels; checksums as libpng takes them."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from image_files import chunk, grey, pixels, png, png_of

from convlens.errors import ImageError
from convlens.image import decode

KINDS = [(depth, 0) for depth in (1, 2, 4, 8, 16)] + [(depth, 3) for depth in (1, 2, 4, 8)]
KINDS += [(depth, colour_type) for colour_type in (2, 4, 6) for depth in (8, 16)]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def expected(samples_HWC: np.ndarray, depth: int, colour_type: int, palette: np.ndarray) -> np.ndarray:
    """Samples as 0..255 in floats, on white where there is alpha (PNG specification, 13.12 and 13.16)."""
    if colour_type == 3:
        return palette[samples_HWC[..., 0]].astype(float)
    levels = samples_HWC * (255 / (2**depth - 1))
    colours = levels[..., : 3 if colour_type in (2, 6) else 1]
    if colour_type in (4, 6):
        alpha = levels[..., -1:] / 255
        colours = colours * alpha + 255 * (1 - alpha)
    return np.broadcast_to(colours, (*colours.shape[:2], 3))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("depth", "colour_type"), KINDS)
def test_every_colour_type_depth_and_interlace_comes_out_right(depth, colour_type, interlaced):
    rng = np.random.default_rng(depth * 10 + colour_type)
    palette = rng.integers(0, 256, (2 ** min(depth, 8), 3))
    extra = [chunk(b"PLTE", palette.astype(np.uint8).tobytes())] if colour_type == 3 else []
    samples = rng.integers(0, 2**depth, (13, 11, CHANNELS[colour_type]))
    result = pixels(png_of(samples, depth, colour_type, *extra, interlaced=interlaced))
    # Of 16 bits the high ones are taken, of the alpha too.
    tolerance = 2 if depth == 16 else 0.51
    np.testing.assert_allclose(result.astype(float), expected(samples, depth, colour_type, palette), atol=tolerance)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 5), (5, 2), (3, 3), (8, 8)])
def test_interlaced_images_smaller_than_a_pass_come_out_right(size):
    samples = np.random.default_rng(0).integers(0, 256, (*size, 3))
    np.testing.assert_array_equal(pixels(png_of(samples, 8, 2, interlaced=True)), samples)


def with_wrong_crc(data: bytes, name: bytes) -> bytes:
    """The file with one bit of the chunk's checksum turned round."""
    at = data.index(name)
    end = at + 4 + int.from_bytes(data[at - 4 : at], "big")
    return data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]


@pytest.mark.parametrize("name", ["IHDR", "PLTE", "IDAT", "IEND"])
def test_a_wrong_checksum_of_a_critical_chunk_is_refused_and_named(name):
    data = png((2, 1), 8, 3, b"\0\1", chunk(b"PLTE", bytes(6)))
    decode(data)
    with pytest.raises(ImageError, match=f"the checksum of its {name} chunk is wrong"):
        decode(with_wrong_crc(data, name.encode()))


def test_a_wrong_checksum_of_a_second_part_of_the_pixels_is_refused():
    data = png((2, 1), 8, 0, b"\5\6")
    first = data[: data.index(b"IDAT") - 4]
    body = data[len(first) + 8 : -16]
    parts = [chunk(b"IDAT", body[:3]), chunk(b"IDAT", body[3:])]
    end = chunk(b"IEND", b"")
    assert grey(first + b"".join(parts) + end) == [5, 6]
    with pytest.raises(ImageError, match="checksum"):
        decode(first + parts[0] + with_wrong_crc(parts[1], b"IDAT") + end)


def test_ancillary_chunks_with_wrong_checksums_are_left_out_as_by_libpng():
    transparent = chunk(b"tRNS", struct.pack(">H", 5))
    data = png((2, 1), 8, 0, b"\5\6", transparent, chunk(b"tEXt", b"k\0v"))
    assert grey(data) == [255, 6]
    assert grey(with_wrong_crc(data, b"tEXt")) == [255, 6]
    assert grey(with_wrong_crc(data, b"tRNS")) == [5, 6]


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\5\0"])
def test_a_transparent_colour_of_the_wrong_length_is_left_out_as_by_libpng(body):
    assert grey(png((2, 1), 8, 0, b"\5\6", chunk(b"tRNS", body))) == [5, 6]


def test_a_critical_chunk_that_png_does_not_know_is_refused_and_named():
    with pytest.raises(ImageError, match="chunk 'CgBI' that PNG does not define"):
        decode(png((2, 1), 8, 0, b"\5\6", chunk(b"CgBI", bytes(4))))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 8])
def test_a_complete_stream_of_too_few_rows_is_refused(rows, interlaced):
    samples = np.random.default_rng(0).integers(0, 256, (9, 7, 3))
    data = png_of(samples, 8, 2, interlaced=interlaced)
    at, end = data.index(b"IDAT"), data.index(b"IEND")
    stream = zlib.decompress(data[at + 4 : end - 8])
    short = chunk(b"IDAT", zlib.compress(stream[: len(stream) * rows // 9]))
    with pytest.raises(ImageError, match="pixel data ends before the image is complete"):
        decode(data[: at - 4] + short + data[end - 4 :])


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("depth", "colour_type"), KINDS)
def test_an_image_that_ends_in_black_is_whole(depth, colour_type, interlaced):
    samples = np.zeros((9, 7, CHANNELS[colour_type]), int)
    extra = [chunk(b"PLTE", bytes(6))] if colour_type == 3 else []
    black = 255 if colour_type in (4, 6) else 0  # alpha is 0 too, and shows white
    assert (pixels(png_of(samples, depth, colour_type, *extra, interlaced=interlaced)) == black).all()


def test_a_whole_file_whose_pixels_run_out_is_not_called_truncated():
    data = png_of(np.random.default_rng(0).integers(0, 256, (9, 9, 3)), 8, 2)
    at, end = data.index(b"IDAT"), data.index(b"IEND")
    half = chunk(b"IDAT", data[at + 4 : (at + end) // 2])
    with pytest.raises(ImageError, match="its pixel data ends before the image is complete"):
        decode(data[: at - 4] + half + data[end - 4 :])
