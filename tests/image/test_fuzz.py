"""No bytes whatsoever may raise anything but ImageError, nor warn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from image_files import saved
from PIL import Image

from convlens.errors import ImageError
from convlens.image import Limits, decode

CASES_PER_FILE = 120
SIZE = (20, 24)


def files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, SIZE, dtype=np.uint16))
    exif = Image.Exif()
    exif[274], exif[305], exif[282] = 6, "software" * 5, 72.0
    exif.get_ifd(0x8769)[36864] = b"0230"
    two = {"save_all": True, "append_images": [rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]}
    return {
        "jpeg": saved(rgb, "JPEG", exif=exif),
        "jpeg cmyk": saved(rgb.convert("CMYK"), "JPEG"),
        "png": saved(rgb, "PNG", exif=exif, compress_level=0),
        "png palette": saved(rgb.convert("P"), "PNG", transparency=3),
        "png 16": saved(deep, "PNG"),
        "png animated": saved(rgb, "PNG", **two),
        "webp": saved(rgb, "WEBP", exif=exif.tobytes()),
        "webp lossless": saved(rgb.convert("RGBA"), "WEBP", lossless=True),
        "gif": saved(rgb, "GIF", **two, disposal=2, transparency=0),
        "bmp": saved(rgb, "BMP"),
        "bmp palette": saved(rgb.convert("P"), "BMP"),
        "tiff": saved(rgb, "TIFF", exif=exif),
        "tiff pages": saved(rgb, "TIFF", **two),
        "tiff big": saved(rgb, "TIFF", big_tiff=True, exif=exif),
        "tiff lzw": saved(rgb, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": saved(rgb, "TIFF", compression="jpeg"),
        "tiff fax": saved(rgb.convert("1"), "TIFF", compression="group4"),
    }


FILES = files()


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The file cut off somewhere, or with up to five bytes changed, more often in its header."""
    if rng.random() < 0.25:
        return data[: rng.integers(len(data))]
    changed = bytearray(data)
    reach = min(200, len(data)) if rng.random() < 0.6 else len(data)
    for _ in range(rng.integers(1, 6)):
        changed[rng.integers(reach)] = rng.choice([0, 255, rng.integers(256)])
    return bytes(changed)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_decodes_or_is_an_image_error_and_never_warns(name, capfd):
    rng = np.random.default_rng(list(name.encode()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(CASES_PER_FILE):
            try:
                assert decode(damaged(FILES[name], rng), limits=Limits(pixels=2_000_000)).mode == "RGB"
            except ImageError as error:
                assert "\n" not in str(error)  # it may end up in a header line
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("name", FILES)
def test_the_undamaged_file_decodes(name):
    decode(FILES[name])


def test_noise_is_an_image_error():
    rng = np.random.default_rng(1)
    for length in range(200):
        with pytest.raises(ImageError):
            decode(rng.bytes(length))
