"""Picture files made by Pillow, by tifffile and by hand, for tests."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image

from convlens.image import Limits, decode


def saved(picture: np.ndarray | Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, form, **options)
    return file.getvalue()


def tiff(values: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def tiff_by_hand(*entries: tuple[int, int, int, int]) -> bytes:
    """The head of a little-endian TIFF: its directory of (tag, type, count, value or offset), from byte 8 on."""
    directory = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + directory + bytes(4)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(size: tuple[int, int], depth: int, colour_type: int, row: bytes, *extra: bytes) -> bytes:
    """A PNG written by hand from the specification, of one row."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + data + chunk(b"IEND", b"")


_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png_of(samples_HWC: np.ndarray, depth: int, colour_type: int, *extra: bytes, interlaced: bool = False) -> bytes:
    """A PNG of these samples written by hand from the specification; its rows take the five filters by turns."""
    height, width, channels = samples_HWC.shape
    assert channels == _CHANNELS[colour_type]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [samples_HWC[top::down, left::across] for top, left, down, across in passes]
    body = b"".join(_filtered_rows(part, depth) for part in parts if part.size)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced))
    data = chunk(b"IDAT", zlib.compress(body))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + data + chunk(b"IEND", b"")


def _filtered_rows(samples_HWC: np.ndarray, depth: int) -> bytes:
    height, _, channels = samples_HWC.shape
    if depth == 16:
        rows = samples_HWC.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        bits = (samples_HWC.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    step = max(1, channels * depth // 8)
    padded = np.pad(rows.astype(int), ((1, 0), (step, 0)))  # what lies outside counts as 0
    now, left, up, both = padded[1:, step:], padded[1:, :-step], padded[:-1, step:], padded[:-1, :-step]
    near = np.stack([left, up, both])
    paeth = np.take_along_axis(near, np.abs(near - (left + up - both)).argmin(0)[None], 0)[0]
    filtered = np.stack([now, now - left, now - up, now - (left + up) // 2, now - paeth]) % 256
    return b"".join(bytes([y % 5]) + filtered[y % 5, y].astype(np.uint8).tobytes() for y in range(height))


def bmp_of(
    size: tuple[int, int],
    bits: int,
    compression: int,
    body: bytes,
    *,
    masks: tuple[int, ...] = (),
    palette: bytes = b"",
) -> bytes:
    """A BMP written by hand, rows from the bottom up; four masks make its header one of version 3, with alpha."""
    header_size = 56 if len(masks) == 4 else 40
    fields = struct.pack(
        "<LllHHLLllLL", header_size, *size, 1, bits, compression, len(body), 0, 0, len(palette) // 4, 0
    )
    head = fields + b"".join(struct.pack("<L", mask) for mask in masks) + palette
    offset = 14 + len(head)
    return b"BM" + struct.pack("<LLL", offset + len(body), 0, offset) + head + body


def pixels(data: bytes, **options: Limits) -> np.ndarray:
    picture = decode(data, **options)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def grey(data: bytes) -> list[int]:
    rgb = pixels(data)[0]
    assert (rgb == rgb[:, :1]).all()
    return rgb[:, 0].tolist()
