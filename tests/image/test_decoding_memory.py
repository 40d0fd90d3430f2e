"""Decoding takes at most three times the memory of the image as RGB, beside the file that is given.

A WebP takes five times: Pillow keeps two canvases for an animation, and copies one.
"""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import bmp_of, chunk, saved, tiff
from PIL import Image

from convlens.image import Limits

SIZE = (4000, 3000)
# The highest resident size since the decoder was loaded, as Linux counts it for this program. getrusage's would begin
# with what the test's own process has used.
PROGRAM = """
import re, sys
from pathlib import Path
from convlens.image import Limits, decode, tiff_samples
try:
    import tifffile, imagecodecs
except ImportError:
    pass

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

data = sys.stdin.buffer.read()
Path("/proc/self/clear_refs").write_text("5")
before = peak()
image = decode(data, limits=Limits(bytes=10**9))
print((peak() - before) / (3 * image.width * image.height))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is counted as Linux does")


def peak_per_rgb(data: bytes) -> float:
    run = subprocess.run([sys.executable, "-c", PROGRAM], input=data, capture_output=True, check=True)
    return float(run.stdout)


def flat_png(size: tuple[int, int], depth: int, colour_type: int, channels: int, *extra: bytes) -> bytes:
    """A PNG of zeros, made row by row."""
    width, height = size
    row = bytes(1 + (width * depth * channels + 7) // 8)
    packer = zlib.compressobj(9)
    body = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour_type, 0, 0, 0])
    chunks = chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def turned(form: str, mode: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return saved(Image.new(mode, SIZE), form, exif=exif, **options)


@pytest.mark.parametrize("transparency", [(), (chunk(b"tRNS", b"\x80"),)])
def test_a_palette_bomb_takes_twice_its_pixels(transparency):
    data = flat_png((7000, 7100), 1, 3, 1, chunk(b"PLTE", bytes(6)), *transparency)
    assert len(data) < 7000
    assert Limits().pixels >= 7000 * 7100
    assert peak_per_rgb(data) < 2


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: flat_png(SIZE, 16, 0, 1), id="16-bit grey"),
        pytest.param(lambda: flat_png(SIZE, 16, 4, 2), id="16-bit grey and alpha"),
        pytest.param(lambda: flat_png(SIZE, 8, 6, 4), id="RGBA"),
        pytest.param(lambda: turned("PNG", "RGBA", compress_level=1), id="RGBA turned"),
        pytest.param(lambda: flat_png(SIZE, 8, 2, 3, chunk(b"tRNS", bytes(6))), id="RGB with a transparent colour"),
        pytest.param(lambda: saved(Image.new("CMYK", SIZE), "JPEG"), id="CMYK JPEG"),
        pytest.param(lambda: turned("JPEG", "CMYK"), id="CMYK JPEG turned"),
        pytest.param(lambda: turned("JPEG", "RGB"), id="JPEG turned"),
        pytest.param(lambda: saved(Image.new("P", SIZE), "GIF", transparency=0), id="GIF"),
        pytest.param(lambda: bmp_of(SIZE, 8, 1, b"\1\1\0\0" * SIZE[1] + b"\0\1", palette=bytes(8)), id="BMP of runs"),
        pytest.param(lambda: bmp_of(SIZE, 16, 3, bytes(2 * SIZE[0] * SIZE[1]), masks=(0xF00, 0xF0, 0xF, 0xF000)),
                     id="BMP of fields"),
        pytest.param(lambda: saved(Image.new("RGB", (2000, 1500)), "TIFF"), id="TIFF"),
        pytest.param(lambda: turned("TIFF", "RGBA", compression="tiff_lzw"), id="RGBA TIFF turned"),
        pytest.param(lambda: tiff(np.zeros((3000, 4000), np.float32), rowsperstrip=64), id="float TIFF"),
    ],
)  # fmt: skip
def test_decoding_takes_at_most_three_times_the_rgb(make: Callable[[], bytes]):
    assert peak_per_rgb(make()) < 3


def test_planes_of_deep_samples_take_at_most_three_times_the_rgb():
    pytest.importorskip("imagecodecs")
    planes = np.zeros((4, SIZE[1], SIZE[0]), np.uint16)
    options = {"photometric": "rgb", "planarconfig": "separate", "extrasamples": [2], "compression": "zlib"}
    assert peak_per_rgb(tiff(planes, rowsperstrip=64, **options)) < 3
