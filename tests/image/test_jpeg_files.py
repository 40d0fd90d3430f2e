"""JPEGs with odd segments before their pixels, as libjpeg reads them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
import torchvision
from image_files import pixels, saved
from PIL import Image

from convlens.errors import ImageError
from convlens.image import decode

ORIENTATION_3 = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\3\0\0\0\0\0\0\0"


pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    levels = np.linspace(0, 255, 16 * 24 * 3).reshape(16, 24, 3).astype(np.uint8)
    return saved(levels, "JPEG", quality=95, subsampling=0)


def segment(number: int, body: bytes, *, length: int | None = None) -> bytes:
    return b"\xff" + bytes([number]) + struct.pack(">H", len(body) + 2 if length is None else length) + body


def by_libjpeg(data: bytes) -> np.ndarray:
    """torchvision's decoder, which hands the file to libjpeg as it is."""
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    decoded = torchvision.io.decode_jpeg(encoded, mode=torchvision.io.ImageReadMode.RGB)
    return decoded.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("number", range(0xE0, 0xF0))
@pytest.mark.parametrize("body", [b"", b"J", b"JFIF\0", b"JFIF\0\1", b"Adobe\0", b"Exif\0", b"MPF\0", b"ICC_PROFILE\0",
                                  b"Photoshop 3.0\0008BIM\4"])  # fmt: skip
def test_a_short_app_segment_changes_nothing(jpeg, number, body):
    data = jpeg[:2] + segment(number, body) + jpeg[2:]
    np.testing.assert_array_equal(pixels(data), by_libjpeg(data))


@pytest.mark.parametrize("length", [0, 1, 2])
def test_an_app_segment_shorter_than_its_own_length_is_skipped_as_by_libjpeg(jpeg, length):
    data = jpeg[:2] + segment(0xE1, b"", length=length) + jpeg[2:]
    np.testing.assert_array_equal(pixels(data), by_libjpeg(data))


@pytest.mark.parametrize("odd", [b"\xff\xff", b"\xff\x01", b"\xff\xd3", b"\0\0\0", segment(0xFE, b"a comment")])
def test_filling_and_markers_without_a_body_are_skipped_as_by_libjpeg(jpeg, odd):
    behind_jfif = 4 + struct.unpack_from(">H", jpeg, 4)[0]
    data = jpeg[:behind_jfif] + odd + jpeg[behind_jfif:]
    np.testing.assert_array_equal(pixels(data), by_libjpeg(data))


@pytest.mark.parametrize("transform", [0, 1])
def test_adobes_word_on_the_colours_still_counts(jpeg, transform):
    # Without JFIF's segment, which would say that the three channels are YCbCr.
    bare = jpeg[:2] + jpeg[2 + 2 + struct.unpack_from(">H", jpeg, 4)[0] :]
    data = bare[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform])) + bare[2:]
    np.testing.assert_array_equal(pixels(data), by_libjpeg(data))
    assert np.array_equal(pixels(data), pixels(jpeg)) == (transform == 1)


def test_exif_still_turns_the_image_and_a_short_one_does_not(jpeg):
    upright = pixels(jpeg)
    np.testing.assert_array_equal(pixels(jpeg[:2] + segment(0xE1, ORIENTATION_3) + jpeg[2:]), upright[::-1, ::-1])
    np.testing.assert_array_equal(pixels(jpeg[:2] + segment(0xE1, ORIENTATION_3[:12]) + jpeg[2:]), upright)


def test_four_channels_stay_inverted_as_adobe_writes_them():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    data = saved(cyan, "JPEG", quality=100)
    odd = data[:2] + segment(0xE2, b"") + data[2:]
    np.testing.assert_allclose(pixels(odd).astype(float), np.full((16, 16, 3), (0, 255, 255)), atol=3)


def test_a_segment_that_describes_pixels_and_is_too_short_is_refused(jpeg):
    with pytest.raises(ImageError):
        decode(jpeg[:2] + segment(0xDB, b"\0\1\2") + jpeg[2:])
