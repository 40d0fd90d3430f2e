"""Files that are no pictures, or only the beginning of one, or far too much of one; made by code."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib

import numpy as np
from image_files import chunk, saved, tiff_by_hand

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF")
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
WHOLE = {form: saved(NOISE, form) for form in FORMATS}
SIGNED = b"\x89PNG\r\n\x1a\n"
ENOUGH = 30_000  # a side: 900 million pixels, where 50 million are allowed


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def end() -> bytes:
    return chunk(b"IEND", b"")


def resized(form: str) -> bytes:
    """A small file whose header says that it is huge: memory would be taken before its pixels turn out missing."""
    data = bytearray(WHOLE[form])
    if form == "PNG":
        return SIGNED + header(ENOUGH, ENOUGH) + WHOLE[form][33:]
    if form == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", ENOUGH, ENOUGH)
    elif form == "GIF":
        at = data.index(b",") + 5
        data[6:10] = data[at : at + 4] = struct.pack("<HH", ENOUGH, ENOUGH)
    elif form == "BMP":
        data[18:26] = struct.pack("<ii", ENOUGH, ENOUGH)
    elif form == "TIFF":
        return tiff_by_hand((256, 4, 1, ENOUGH), (257, 4, 1, ENOUGH), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8))
    else:
        side = (16383).to_bytes(3, "little")
        extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + side + side
        return b"RIFF" + struct.pack("<I", len(data) + 10) + b"WEBP" + extended + bytes(data[12:])
    return bytes(data)


def inflated(megabytes: int = 500) -> bytes:
    """A PNG of one pixel whose data unpack to half a gigabyte."""
    squeeze = zlib.compressobj(9)
    block = bytes(2**20)
    packed = b"".join([*(squeeze.compress(block) for _ in range(megabytes)), squeeze.flush()])
    return SIGNED + header(1, 1) + chunk(b"IDAT", packed) + end()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cat.png", WHOLE["PNG"])
    return file.getvalue()


def damaged() -> dict[str, bytes]:
    """Pictures of every format, cut off or with a fault inside."""
    cut = {f"half a {form}": data[: len(data) // 2] for form, data in WHOLE.items()}
    heads = {f"the first bytes of a {form}": data[:16] for form, data in WHOLE.items()}
    png = WHOLE["PNG"]
    return {
        **cut,
        **heads,
        "a PNG without pixels": SIGNED + header(8, 8) + end(),
        "a PNG of no size": SIGNED + header(0, 0) + png[33:],
        "a PNG with a false checksum": png[:32] + bytes([png[32] ^ 255]) + png[33:],  # of its header
        "a PNG of rubble": SIGNED + header(64, 64) + chunk(b"IDAT", bytes(range(256))) + end(),
        "a TIFF whose directory is elsewhere": b"II*\0" + struct.pack("<L", 2**31) + bytes(100),
        "a TIFF of four billion tags": tiff_by_hand((256, 4, 2**32 - 1, 0)),
    }


def foreign() -> dict[str, bytes]:
    """Files of other kinds."""
    numbers = io.BytesIO()
    np.save(numbers, NOISE)
    return {
        "nothing": b"",
        "one byte": b"\xff",
        "every byte": bytes(range(256)) * 40,
        "zeros": bytes(4096),
        "a PDF": b"%PDF-1.7\n" + bytes(100),
        "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "an XML bomb": b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><l>&b;</l>',
        "a web page": b"<!DOCTYPE html><script>alert(1)</script>",
        "a ZIP archive": zipped(),
        "an array of numpy": numbers.getvalue(),
        "a pickle": pickle.dumps(print),
        "an AVIF": struct.pack(">I", 28) + b"ftypavif" + bytes(100),
        "an address": b"http://127.0.0.1/cat.png",
        "a path": b"file:///etc/passwd",
        "a shell": b"$(reboot); `reboot`\n",
    }


def bombs() -> dict[str, bytes]:
    """Small files of huge pictures, one of each format, and a large file."""
    return {f"a {form} of {ENOUGH} pixels a side": resized(form) for form in FORMATS} | {
        "21 megabytes": WHOLE["PNG"] + bytes(21 * 2**20)
    }
