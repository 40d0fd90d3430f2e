"""BMPs written by hand: channels in bit fields, and run lengths."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from image_files import bmp_of, pixels

from convlens.errors import ImageError
from convlens.image import decode

FIELDS, RLE8, RLE4, ALPHA_FIELDS = 3, 1, 2, 6
PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
STORED = b"".join(bytes([blue, green, red, 0]) for red, green, blue in PALETTE.tolist())
MISSING = [255, 255, 255]


def runs(size: tuple[int, int], body: bytes, *, bits: int = 8) -> list[list[list[int]]]:
    return pixels(bmp_of(size, bits, RLE8 if bits == 8 else RLE4, body, palette=STORED)).tolist()


def colours(*rows: list[int | None]) -> list[list[list[int]]]:
    return [[MISSING if index is None else PALETTE[index].tolist() for index in row] for row in rows]


@pytest.mark.parametrize(
    ("masks", "codes", "expected"),
    [
        # 5-5-5 and alpha: white half seen through is white, red not at all is white, red is red
        ((0x7C00, 0x3E0, 0x1F, 0x8000), [0x7C00, 0xFC00, 0x8000], [[255, 255, 255], [255, 0, 0], [0, 0, 0]]),
        # 4-4-4-4, of which 0x8 alpha is 136 of 255: 255 * 119 / 255 = 119 of white shines through black
        ((0xF00, 0xF0, 0xF, 0xF000), [0x8000, 0xF123, 0x0FFF], [[119] * 3, [17, 34, 51], [255] * 3]),
        # 2-3-1, as one of bmpsuite's: 1 of 3, 2 of 7 and 1 of 1
        ((0x30, 0xE, 0x1), [0x15, 0x0, 0x3F], [[85, 73, 255], [0, 0, 0], [255, 255, 255]]),
        # 5-6-5, rounded: 10 of 31, 20 of 63, 30 of 31
        ((0xF800, 0x7E0, 0x1F), [10 << 11 | 20 << 5 | 30, 0, 0xFFFF], [[82, 81, 247], [0, 0, 0], [255] * 3]),
    ],
)
def test_sixteen_bit_fields_of_any_layout_are_read_with_their_alpha(masks, codes, expected):
    body = struct.pack("<4H", *codes, 0)  # three pixels, and two bytes to fill the row
    assert pixels(bmp_of((3, 1), 16, FIELDS, body, masks=masks)).tolist() == [expected]


def test_thirty_two_bit_fields_of_any_layout_are_read():
    masks = (0x3FF00000, 0xFFC00, 0x3FF)  # 10 bits each: 512 of 1023 is 127.6
    body = struct.pack("<2L", 1023 << 20 | 512 << 10, 512)
    assert pixels(bmp_of((2, 1), 32, FIELDS, body, masks=masks)).tolist() == [[[255, 128, 0], [0, 0, 128]]]


def test_masks_of_four_channels_behind_a_short_header_are_read():
    data = bmp_of((1, 1), 32, ALPHA_FIELDS, struct.pack("<L", 0x3300C864), masks=(0xFF, 0xFF00, 0xFF0000, 0xFF000000))
    short = data[:14] + struct.pack("<L", 40) + data[18:]
    # alpha 51 of 255: 100 -> 224, 200 -> 244, 0 -> 204
    assert pixels(data).tolist() == pixels(short).tolist() == [[[224, 244, 204]]]


def test_a_mask_with_a_gap_is_refused():
    with pytest.raises(ImageError, match="channel mask 0x5 has a gap"):
        decode(bmp_of((1, 1), 16, FIELDS, bytes(4), masks=(0x5, 0x10, 0x20)))


def test_rows_run_from_the_bottom_up_or_from_the_top_down():
    masks, body = (0xF800, 0x7E0, 0x1F), struct.pack("<2H2H", 0xF800, 0, 0x1F, 0)
    assert pixels(bmp_of((1, 2), 16, FIELDS, body, masks=masks)).tolist() == [[[0, 0, 255]], [[255, 0, 0]]]
    assert pixels(bmp_of((1, -2), 16, FIELDS, body, masks=masks)).tolist() == [[[255, 0, 0]], [[0, 0, 255]]]


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"\3\1\0\0" b"\3\2\0\1", [[2, 2, 2], [1, 1, 1]]),
        (b"\0\3\1\2\3\0\0\0" b"\3\4\0\1", [[4, 4, 4], [1, 2, 3]]),
        (b"\5\1\0\0" b"\3\2\0\1", [[2, 2, 2], [1, 1, 1]]),  # a run over the row's end
        (b"\0\5\1\2\3\4\4\0\0\0" b"\3\2\0\1", [[2, 2, 2], [1, 2, 3]]),  # pixels over the row's end
        (b"\5\1\0\1", [[None, None, None], [1, 1, 1]]),  # and nothing of either in the next row
        (b"\0\5\1\2\3\4\4\0\0\1", [[None, None, None], [1, 2, 3]]),
        (b"\2\1\0\4\3\4\4\4\0\0" b"\3\2\0\1", [[2, 2, 2], [1, 1, 3]]),  # the same behind a run
        (b"\1\1\0\0" b"\0\2\1\0\1\2\0\1", [[None, 2, None], [1, None, None]]),  # rows cut short, and a step right
        (b"\0\2\0\1\3\2\0\1", [[2, 2, 2], [None, None, None]]),  # a step up
        (b"\3\1\0\1", [[None, None, None], [1, 1, 1]]),  # an end before the last row
        (b"\3\1\0\0" b"\3\2", [[2, 2, 2], [1, 1, 1]]),  # no end, but every pixel
    ],
)  # fmt: skip
def test_run_lengths_of_bytes_are_unpacked_and_stay_in_their_rows(body, rows):
    assert runs((3, 2), body) == colours(*rows)


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"\3\x12\0\0" b"\3\x21\0\1", [[2, 1, 2], [1, 2, 1]]),
        (b"\0\3\x12\x30\0\0" b"\3\x44\0\1", [[4, 4, 4], [1, 2, 3]]),
        (b"\0\5\x12\x34\x40\0\0\0" b"\3\x22\0\1", [[2, 2, 2], [1, 2, 3]]),
        (b"\1\x11\0\5\x23\x44\x40\0\0\0" b"\3\x22\0\1", [[2, 2, 2], [1, 2, 3]]),
    ],
)  # fmt: skip
def test_run_lengths_of_half_bytes_are_unpacked_and_stay_in_their_rows(body, rows):
    assert runs((3, 2), body, bits=4) == colours(*rows)


def test_padding_counts_from_the_runs_and_not_from_the_start_of_the_file():
    # Three bytes of the palette are left out, so that the pixels begin at an odd place.
    data = bmp_of((3, 2), 8, RLE8, b"\0\3\1\2\3\0\0\0" b"\3\4\0\1", palette=STORED)  # fmt: skip
    odd = data[:10] + struct.pack("<L", 14 + 40 + len(STORED) + 1) + data[14:74] + b"\0" + data[74:]
    assert pixels(odd).tolist() == colours([4, 4, 4], [1, 2, 3])


@pytest.mark.parametrize("body", [b"\3\1", b"\3\1\0\0\0\3\1", b"\3\1\0\0\0\2\1", b"\3\1\0\0\3"])
def test_run_lengths_that_end_early_are_refused(body):
    with pytest.raises(ImageError, match="ends before the image is complete"):
        runs((3, 2), body)


def test_fields_that_end_early_are_refused():
    with pytest.raises(ImageError, match="ends before the image is complete"):
        decode(bmp_of((2, 2), 16, FIELDS, bytes(7), masks=(0xF800, 0x7E0, 0x1F)))
