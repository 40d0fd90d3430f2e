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


def pixels(data: bytes, **options: Limits) -> np.ndarray:
    picture = decode(data, **options)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def grey(data: bytes) -> list[int]:
    rgb = pixels(data)[0]
    assert (rgb == rgb[:, :1]).all()
    return rgb[:, 0].tolist()
