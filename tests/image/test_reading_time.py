"""Files of many parts are refused by their number, before their pixels are decoded, or read in a few steps."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from image_files import bmp_of, chunk, pixels, saved, tiff
from PIL import Image
from slow_images import (
    GIF,
    GIF_HEAD,
    JPEG,
    NOISE,
    PACKED,
    PROGRESSIVE,
    SECOND_SCAN,
    SLOW,
    of_scans,
    of_strips,
    os2_runs,
    png,
    segment,
)

from convlens.errors import DeadlineError, ImageError, ImageTooLargeError
from convlens.image import decode, decode_channels, read, read_channels
from convlens.image.bounds import allowed_seconds

TOTAL, SIDE = 600_000, 64
# Functions that are called, in Python and in C. One for each byte of these files would make more.
MOST_CALLS = 580_000
MOST_CALLS_OF_RUNS = 2_000_000  # run lengths, which Python takes one by one
REFUSED = [name for name, slow in SLOW.items() if slow.refusal]
READ = [name for name, slow in SLOW.items() if not slow.refusal]


def calls_of(action: Callable[[], object]) -> int:
    """The number of functions that an action calls."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


def test_there_are_forty_kinds_of_slow_files_and_more():
    assert len(SLOW) >= 40
    assert {name.partition(":")[0] for name in SLOW} == {"JPEG", "PNG", "GIF", "WebP", "TIFF", "BMP"}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_of_too_many_parts_is_refused_in_few_steps_and_told_why(name):
    data = SLOW[name].make(TOTAL, SIDE)

    def refused() -> None:
        with pytest.raises(ImageError, match=SLOW[name].refusal) as caught:
            decode(data)
        assert caught.value.status in (400, 413)

    assert calls_of(refused) < (MOST_CALLS_OF_RUNS if name.startswith("BMP") else MOST_CALLS)


@pytest.mark.parametrize("name", READ)
def test_a_file_within_the_bounds_is_read_in_few_steps(name):
    data = SLOW[name].make(TOTAL, SIDE)
    assert calls_of(lambda: decode(data)) < MOST_CALLS


def test_the_time_that_is_allowed_grows_with_the_pixels():
    assert allowed_seconds(0) == 0.5
    assert allowed_seconds(50_000_000) == pytest.approx(2.0)


# --- the bounds exactly -----------------------------------------------------------------------------------------------


def inserted(data: bytes, at: int, part: bytes, count: int) -> bytes:
    return data[:at] + part * count + data[at:]


SEGMENTS = 9  # of Pillow's JPEG: APP0, two DQT, SOF0, four DHT and SOS
TEXT = chunk(b"tEXt", b"k\0v")
BOUNDS = {
    "scans": (32, lambda count: of_scans(64, count)),
    "segments": (4096 - SEGMENTS, lambda count: inserted(JPEG, 2, segment(0xE5, b""), count)),
    "fill bytes": (1023, lambda count: inserted(PROGRESSIVE, SECOND_SCAN, b"\xff", count)),
    "chunks": (32768 - 3, lambda count: inserted(png(chunk(b"IDAT", PACKED)), 33, TEXT, count)),
    "GIF blocks": (65536 - 1, lambda count: GIF[:GIF_HEAD] + b"!\xfe" + b"\1x" * count + b"\0" + GIF[GIF_HEAD:]),
    "strips": (16_384 + 500 * 8 * 16_384 // 10**6, lambda count: of_strips(count, bytes(8), 1)),
    "run lengths": (
        2**19 + 5_000 * 64 * 64 // 10**6,
        lambda count: bmp_of((64, 64), 8, 1, b"\0\2\0\0" * count + b"\0", palette=bytes(1024)),
    ),
    "bytes of OS/2's run lengths": (2**18 // 4, lambda count: os2_runs(4 * count)),
}


def is_too_large(data: bytes) -> bool:
    try:
        decode(data)
    except ImageTooLargeError:
        return True
    except ImageError:
        return False
    return False


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_counts_exactly(name):
    most, make = BOUNDS[name]
    assert not is_too_large(make(most))
    assert is_too_large(make(most + 1))


@pytest.mark.parametrize("part", [segment(0xE5, bytes(9)), segment(0xFE, b"a comment"), b"\xff" * 100])
def test_what_is_left_out_of_a_jpeg_changes_no_pixel(part):
    np.testing.assert_array_equal(pixels(inserted(JPEG, 2, part, 50)), pixels(JPEG))


def test_of_several_exif_segments_the_first_turns_the_image():
    exif = [b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0" + bytes([turn]) + bytes(7) for turn in (3, 6)]
    data = JPEG[:2] + segment(0xE1, exif[0]) + segment(0xE1, exif[1]) + JPEG[2:]
    np.testing.assert_array_equal(pixels(data), pixels(JPEG)[::-1, ::-1])


def test_pixels_in_chunks_of_a_byte_are_the_same_pixels():
    whole = png(chunk(b"IDAT", PACKED))
    np.testing.assert_array_equal(pixels(SLOW["PNG: pixel chunks of one byte"].make(TOTAL, SIDE)), NOISE)
    np.testing.assert_array_equal(pixels(whole), NOISE)


def test_a_gif_behind_comments_and_rubble_keeps_its_transparency():
    frame = np.arange(16, dtype=np.uint8).reshape(4, 4)
    data = saved(Image.fromarray(frame, "P"), "GIF", transparency=3)
    at = data.index(b"!\xf9")
    odd = data[:at] + b"xx!\xfe\1a\0" + data[at:]
    np.testing.assert_array_equal(pixels(odd), pixels(data))
    assert (pixels(odd)[0, 3] == 255).all()


def test_four_bit_pixels_one_by_one_come_out_in_their_order():
    palette = b"".join(bytes([n, n, n, 0]) for n in range(16))
    data = bmp_of((6, 1), 4, 2, b"\0\6\x12\x3a\xbf\0\0\1", palette=palette)
    assert pixels(data)[0, :, 0].tolist() == [1, 2, 3, 10, 11, 15]


def test_pages_are_counted_before_tifffile_looks_for_them():
    page = struct.pack("<H", 0)
    chain = b"".join(page + struct.pack("<L", 8 + 6 * (n + 1)) for n in range(2000))
    with pytest.raises(ImageTooLargeError, match="more than 1024 pages"):
        decode_channels(b"II*\0" + struct.pack("<L", 8) + chain + bytes(6), 6)


def test_a_tiff_of_many_channels_is_held_to_the_same_bounds():
    values = np.zeros((4200, 2, 2), np.float32)
    data = tiff(values.transpose(2, 0, 1).copy(), photometric="minisblack", planarconfig="separate", rowsperstrip=1)
    with pytest.raises(ImageTooLargeError, match="strips or tiles; at most"):
        decode_channels(data, 2)


@pytest.mark.parametrize("reader", [read, lambda path: read_channels(path, 1)])
def test_a_local_file_is_held_to_the_same_bounds_and_named(tmp_path, reader):
    path = tmp_path / "scans.jpg"
    path.write_bytes(of_scans(64, 33))
    with pytest.raises(ImageTooLargeError, match=r"scans\.jpg: a JPEG of more than 32 scans"):
        reader(path)


# --- while it is read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP"])
def test_an_error_between_two_blocks_ends_the_reading(form):
    data = saved(np.tile(NOISE, (4, 4, 1)), form)
    seen = 0

    def on_block() -> None:
        nonlocal seen
        seen += 1
        if seen > 3:
            raise DeadlineError("the time is over")

    with pytest.raises(DeadlineError, match="the time is over"):
        decode(data, on_block=on_block)


PROGRAM = """
import sys
from convlens.errors import ImageError
from convlens.image import decode
for path in sys.argv[1:]:
    try:
        decode(open(path, "rb").read())
    except ImageError:
        pass
"""


def test_nothing_that_is_wrong_with_a_file_goes_to_standard_error(tmp_path):
    rng = np.random.default_rng(0)
    forms = [("TIFF", name) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "zstd", "lzma", "packbits")]
    paths = []
    for form, compression in [*forms, ("JPEG", ""), ("PNG", ""), ("GIF", ""), ("WEBP", "")]:
        data = bytearray(saved(NOISE, form, **({"compression": compression} if compression else {})))
        half = len(data) // 2
        data[half : half + 500] = rng.bytes(500)
        paths.append(tmp_path / f"{form}-{compression}")
        paths[-1].write_bytes(data)
    run = subprocess.run([sys.executable, "-c", PROGRAM, *paths], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")
