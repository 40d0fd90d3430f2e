"""A GIF's first frame, without all that comes before and after it.

Pillow warns of a GIF's size while it opens it, and steps over comments and rubble byte by byte in Python.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from convlens.errors import ImageError
from convlens.image.bounds import GIF_BLOCKS
from convlens.image.formats import Edges, Size

# The beginnings of an extension and of an image, and the end of the file; readers step over any other byte.
_BLOCK = re.compile(rb"[!,;]")
_CONTROL, _IS_TRANSPARENT = 0xF9, 1


@dataclass(frozen=True)
class GifFrame:
    """The first frame of a GIF: the size of the screen, grown to hold it; where it lies; and a file of it alone."""

    screen: Size
    edges: Edges
    alone: bytes


def gif_frame(data: bytes) -> GifFrame:
    """A GIF's first frame, on a screen that grows to hold it, as in browsers and Pillow.

    Raises ImageError where there is none, ImageTooLargeError for more blocks before it than the bound allows.
    """
    if len(data) < 13:
        raise _no_image()
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    # Behind the screen descriptor and, where its top bit says so, a colour table of 2, 4, ... or 256 colours.
    head = at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    control, blocks = b"", 0
    while (found := _BLOCK.search(data, at)) and data[found.start()] != ord(";"):
        at = found.start()
        if data[at] == ord(","):
            if at + 9 > len(data):
                break
            left, top, frame_width, frame_height = struct.unpack_from("<4H", data, at + 1)
            right, bottom = left + frame_width, top + frame_height
            alone = b"".join([data[:head], control, memoryview(data)[at:]])
            return GifFrame((max(width, right), max(height, bottom)), (left, top, right, bottom), alone)
        end, blocks = _after_blocks(data, at + 2, blocks + 1)
        if data[at + 1 : at + 2] == bytes([_CONTROL]) and data[at + 3 : at + 4] and data[at + 3] & _IS_TRANSPARENT:
            control = data[at:end]
        at = end
    raise _no_image()


def _after_blocks(data: bytes, at: int, blocks: int) -> tuple[int, int]:
    """Where a chain of sub-blocks ends, and the number of blocks with those of the chain."""
    while at < len(data) and data[at]:
        at += data[at] + 1
        blocks += 1
        if blocks > GIF_BLOCKS.most:
            raise GIF_BLOCKS.refuse()
    if blocks > GIF_BLOCKS.most:
        raise GIF_BLOCKS.refuse()
    return at + 1, blocks


def _no_image() -> ImageError:
    return ImageError("a damaged GIF (it ends before its first image); send the whole file")
