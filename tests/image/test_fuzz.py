"""No bytes whatsoever may raise anything but ImageError, nor warn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from image_files import bmp_of, chunk, png_of, saved, tiff
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
    planes = rng.random((2, *SIZE)).astype(np.float32)
    palette = b"".join(bytes([n, 255 - n, 7, 0]) for n in range(256))
    runs = b"".join(bytes([24, n, 0, 0]) if n % 2 else bytes([0, 24, *range(24), 0, 0]) for n in range(20)) + b"\0\1"
    return {
        "bmp runs": bmp_of((24, 20), 8, 1, runs, palette=palette),
        "bmp fields": bmp_of((24, 20), 16, 3, rng.bytes(960), masks=(0xF00, 0xF0, 0xF, 0xF000)),
        "png interlaced": png_of(rng.integers(0, 16, (*SIZE, 1)), 4, 3, chunk(b"PLTE", bytes(48)), interlaced=True),
        "tiff planes": tiff(planes, photometric="minisblack", planarconfig="separate", extrasamples=[2]),
        "tiff floats": tiff(rng.random((*SIZE, 3)).astype(np.float32), photometric="rgb", tile=(16, 16)),
        "tiff big-endian big": tiff(
            rng.integers(0, 255, (*SIZE, 3), np.uint8), photometric="rgb", bigtiff=True, byteorder=">", rowsperstrip=5
        ),
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
