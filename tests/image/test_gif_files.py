"""GIFs written by hand: the first frame lies on its screen, which is white where there is nothing."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from image_files import pixels

# Of the palette's four colours; LZW of a plain run would be longer to write than codes that never grow.
PALETTE = bytes([200, 0, 0, 0, 200, 0, 0, 0, 200, 90, 90, 90])
COLOURS = np.frombuffer(PALETTE, np.uint8).reshape(4, 3)


def lzw(indices: list[int]) -> bytes:
    """Codes of three bits, with a clear code before every second, so that the code size never grows."""
    codes = [code for n, index in enumerate(indices) for code in ([4, index] if n % 2 == 0 else [index])] + [5]
    bits = sum(code << 3 * n for n, code in enumerate(codes))
    body = bits.to_bytes(len(codes) * 3 // 8 + 1, "little")
    return (
        b"\2"
        + b"".join(bytes([len(part)]) + part for part in (body[n : n + 255] for n in range(0, len(body), 255)))
        + b"\0"
    )


def gif(
    screen: tuple[int, int],
    place: tuple[int, int],
    frame_HW: np.ndarray,
    *,
    background: int = 0,
    transparent: int | None = None,
    local: bool = False,
) -> bytes:
    height, width = frame_HW.shape
    head = (
        b"GIF89a"
        + struct.pack("<HHBBB", *screen, 0x91 if not local else 0, background, 0)
        + (b"" if local else PALETTE)
    )
    control = b"" if transparent is None else b"!\xf9\4\1\0\0" + bytes([transparent]) + b"\0"
    frame = b"," + struct.pack("<4HB", *place, width, height, 0x81 if local else 0) + (PALETTE if local else b"")
    return head + control + frame + lzw(frame_HW.ravel().tolist()) + b";"


FRAME = np.array([[0, 1, 2], [3, 2, 1]])


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("background", [0, 1])
@pytest.mark.parametrize("place", [(0, 0), (2, 1), (3, 3), (0, 3), (3, 0)])
def test_a_frame_smaller_than_its_screen_lies_there_on_white(place, background, local):
    expected = np.full((5, 6, 3), 255)
    left, top = place
    expected[top : top + 2, left : left + 3] = COLOURS[FRAME]
    np.testing.assert_array_equal(pixels(gif((6, 5), place, FRAME, background=background, local=local)), expected)


def test_transparent_pixels_of_the_frame_are_white_too():
    expected = np.full((5, 6, 3), 255)
    expected[1:3, 2:5] = np.where((FRAME == 2)[..., None], 255, COLOURS[FRAME])
    np.testing.assert_array_equal(pixels(gif((6, 5), (2, 1), FRAME, transparent=2)), expected)


def test_a_frame_as_large_as_its_screen_fills_it():
    np.testing.assert_array_equal(pixels(gif((3, 2), (0, 0), FRAME)), COLOURS[FRAME])


def test_a_screen_grows_to_hold_its_first_frame():
    expected = np.full((3, 4, 3), 255)
    expected[1:, 1:] = COLOURS[FRAME]
    np.testing.assert_array_equal(pixels(gif((2, 2), (1, 1), FRAME)), expected)
