"""Image files that are slow to read for their size, made by code: many parts where few would do."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from image_files import bmp_of, chunk, saved, tiff, tiff_by_hand
from PIL import Image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)


@dataclass(frozen=True)
class SlowImage:
    """``make`` gives a file of at most about so many bytes, with an image of so many pixels a side.

    ``refusal``: what the error says, empty where the file is read.
    """

    make: Callable[[int, int], bytes]
    refusal: str = ""


def inserted(data: bytes, at: int, part: bytes, total: int) -> bytes:
    """The file with as many of the part at one place as fit the total."""
    return data[:at] + part * ((total - len(data)) // len(part)) + data[at:]


# --- JPEG -------------------------------------------------------------------------------------------------------------

JPEG, PROGRESSIVE = saved(NOISE, "JPEG"), saved(NOISE, "JPEG", progressive=True)
SECOND_SCAN = PROGRESSIVE.index(b"\xff\xda", PROGRESSIVE.index(b"\xff\xda") + 2)
QUANTISATION = b"\0" + b"\1" * 64
EXIF = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def huffman(kind: int, symbol: int) -> bytes:
    """A table of one code: the bit 0."""
    return segment(0xC4, bytes([kind << 4, 1, *bytes(15), symbol]))


def scan(first: int, last: int, high: int, component: int) -> bytes:
    return segment(0xDA, bytes([1, component, 0, first, last, high << 4]))


def end_of_band(blocks: int) -> bytes:
    """Bits that say, 32,767 blocks at a time, that nothing follows in so many blocks."""
    bits = ("0" + "1" * 14) * -(-blocks // 32767)
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")


def of_scans(side: int, scans: int, *, refined: bool = False, components: int = 1, between: bytes = b"") -> bytes:
    """A progressive JPEG: the averages of each component, then so many scans over all blocks that change nothing."""
    blocks = (-(-side // 8)) ** 2
    frame = struct.pack(">BHHB", 8, side, side, components)
    frame += b"".join(bytes([n + 1, 0x11, 0]) for n in range(components))
    head = b"\xff\xd8" + segment(0xDB, QUANTISATION) + segment(0xC2, frame) + huffman(0, 0) + huffman(1, 0xE0)
    averages = [scan(0, 0, 0, n + 1) + bytes(-(-blocks // 8)) for n in range(components)]
    nothing = end_of_band(blocks)
    others = [between + scan(1, 63, int(refined), 1 + n % components) + nothing for n in range(scans - components)]
    return b"".join([head, *averages, *others, b"\xff\xd9"])


def of_restarts(side: int) -> bytes:
    blocks = (-(-side // 8)) ** 2
    frame = segment(0xC0, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    head = b"\xff\xd8" + segment(0xDB, QUANTISATION) + frame + huffman(0, 0) + huffman(1, 0) + segment(0xDD, b"\0\1")
    return head + scan(0, 63, 0, 1) + b"".join(b"\x3f\xff" + bytes([0xD0 + n % 8]) for n in range(blocks)) + b"\xff\xd9"


def before_pixels(part: bytes) -> Callable[[int, int], bytes]:
    return lambda total, _: inserted(JPEG, 2, part, total)


def between_scans(part: bytes) -> Callable[[int, int], bytes]:
    return lambda total, _: inserted(PROGRESSIVE, SECOND_SCAN, part, total)


JPEGS = {
    "scans that change nothing": SlowImage(lambda _, side: of_scans(side, 1000), "more than 32 scans"),
    "scans that refine nothing": SlowImage(lambda _, side: of_scans(side, 100, refined=True), "more than 32 scans"),
    "scans of three colours": SlowImage(lambda _, side: of_scans(side, 300, components=3), "more than 32 scans"),
    "scans and tables in turn": SlowImage(
        lambda _, side: of_scans(side, 300, between=huffman(1, 0xE0)), "more than 32 scans"
    ),
    "as many scans as are allowed": SlowImage(lambda _, side: of_scans(side, 32, refined=True)),
    "three images, of which the first counts": SlowImage(lambda _, side: of_scans(side, 14) * 3),
    "empty APPn segments": SlowImage(before_pixels(segment(0xE5, b"")), "more than 4096 segments"),
    "comments of a byte": SlowImage(before_pixels(segment(0xFE, b"x")), "more than 4096 segments"),
    "restart intervals": SlowImage(before_pixels(segment(0xDD, b"\0\0")), "more than 4096 segments"),
    "Huffman tables": SlowImage(before_pixels(huffman(0, 0)), "more than 4096 segments"),
    "quantisation tables, 1000 a segment": SlowImage(
        before_pixels(segment(0xDB, QUANTISATION * 1000)), "bytes of tables; at most 262144"
    ),
    "EXIF segments without an entry": SlowImage(before_pixels(segment(0xE1, EXIF[:6])), "more than 4096 segments"),
    "EXIF segments of 64 kB": SlowImage(before_pixels(segment(0xE1, EXIF.ljust(65500, b"\0")))),
    "colour profiles of 64 kB": SlowImage(before_pixels(segment(0xE2, b"ICC_PROFILE\0".ljust(65500, b"\0")))),
    "fill bytes before the pixels": SlowImage(before_pixels(b"\xff")),
    "escaped bytes before the pixels": SlowImage(before_pixels(b"\xff\0"), "more than 4096 segments"),
    "restarts before the pixels": SlowImage(before_pixels(b"\xff\xd3"), "more than 4096 segments"),
    "segments of no meaning, with rubble": SlowImage(before_pixels(segment(0xF3, bytes(60000))), "a segment 0xf3"),
    "rubble instead of a scan": SlowImage(
        lambda total, _: JPEG[: JPEG.index(b"\xff\xda")].ljust(total, b"\0"), "send the whole file"
    ),
    "rubble behind an early end": SlowImage(
        lambda total, _: (JPEG[: JPEG.index(b"\xff\xda")] + b"\xff\xd9").ljust(total, b"\0"), "send the whole file"
    ),
    "fill bytes between scans": SlowImage(between_scans(b"\xff"), "more than 1023 fill bytes"),
    "APPn segments between scans": SlowImage(between_scans(segment(0xE5, b""))),
    "quantisation tables between scans": SlowImage(between_scans(segment(0xDB, b"\3" + b"\1" * 64))),
    "rubble between scans": SlowImage(between_scans(b"\0")),
    "a restart for each block": SlowImage(lambda _, side: of_restarts(side)),
}


# --- PNG --------------------------------------------------------------------------------------------------------------

SIGNATURE, IEND = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")
PACKED = zlib.compress(b"".join(b"\0" + row.tobytes() for row in NOISE))


def png(*chunks: bytes, side: int = 64, depth: int = 8, colour_type: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour_type, 0, 0, 0))
    return b"".join([SIGNATURE, header, *chunks, IEND])


def with_chunks(name: bytes, body: bytes, *, behind: bool = False) -> Callable[[int, int], bytes]:
    pixels = chunk(b"IDAT", PACKED)
    whole = png(pixels)
    at = len(whole) - len(IEND) - (0 if behind else len(pixels))
    part = chunk(name, body)
    return lambda total, _: inserted(whole, at, part, max(total, len(whole) + 33_000 * len(part)))


def packed(row: bytes, count: int) -> bytes:
    """So many rows, packed."""
    packer = zlib.compressobj(1)
    together = max(1, 2**20 // len(row))
    parts = [packer.compress(row * together) for _ in range(count // together)]
    return b"".join([*parts, packer.compress(row * (count % together)), packer.flush()])


@cache
def zeros() -> bytes:
    return packed(bytes(2**20), 100)


def of_paeth_rows(side: int, rows: int, depth: int, colour_type: int, bytes_per_pixel: int) -> bytes:
    """A square of which so many rows are there, of the same noise, filtered by Paeth's filter."""
    row = b"\4" + RNG.bytes(side * bytes_per_pixel)
    return png(chunk(b"IDAT", packed(row, rows)), side=side, depth=depth, colour_type=colour_type)


PNGS = {
    "text chunks": SlowImage(with_chunks(b"tEXt", b"k\0v"), "more than 32768 chunks"),
    "text chunks behind the pixels": SlowImage(with_chunks(b"tEXt", b"k\0v", behind=True), "more than 32768 chunks"),
    "transparent colours": SlowImage(with_chunks(b"tRNS", bytes(6)), "more than 32768 chunks"),
    "palettes": SlowImage(with_chunks(b"PLTE", bytes(3)), "more than 32768 chunks"),
    "EXIF chunks": SlowImage(with_chunks(b"eXIf", EXIF[6:]), "more than 32768 chunks"),
    "empty pixel chunks": SlowImage(with_chunks(b"IDAT", b""), "more than 32768 chunks"),
    "empty pixel chunks behind the pixels": SlowImage(with_chunks(b"IDAT", b"", behind=True), "more than 32768 chunks"),
    "pixel chunks of one byte": SlowImage(lambda *_: png(*(chunk(b"IDAT", bytes([byte])) for byte in PACKED))),
    "a text that unpacks to 100 MB": SlowImage(
        lambda *_: png(chunk(b"zTXt", b"k\0\0" + zeros()), chunk(b"IDAT", PACKED))
    ),
    "pixels that unpack to 100 MB": SlowImage(lambda *_: png(chunk(b"IDAT", zeros()))),
    "empty blocks of packed pixels": SlowImage(
        lambda total, _: png(chunk(b"IDAT", PACKED[:2] + b"\0\0\0\xff\xff" * (total // 5 - 4000) + PACKED[2:]))
    ),
    "EXIF of 65,535 tags": SlowImage(
        lambda total, _: png(
            chunk(b"eXIf", (b"II*\0\x08\0\0\0\xff\xff").ljust(min(total, 2**20), b"\0")), chunk(b"IDAT", PACKED)
        )
    ),
    "a chunk that is cut off": SlowImage(
        lambda total, _: (png()[:33] + struct.pack(">L", 2**31 - 1) + b"IDAT").ljust(total, b"\0"),
        "send the whole file",
    ),
    "four deep channels of noise": SlowImage(
        lambda _, side: of_paeth_rows(3000, min(side, 3000), 16, 6, 8), "bytes once unpacked"
    ),
    "three deep channels of noise": SlowImage(
        lambda _, side: of_paeth_rows(4200, min(side, 4200), 16, 2, 6), "bytes once unpacked"
    ),
    "four channels of noise": SlowImage(lambda _, side: of_paeth_rows(side, side, 8, 6, 4)),
}


# --- GIF, WebP --------------------------------------------------------------------------------------------------------

GIF = saved(NOISE[..., 0], "GIF")
GIF_HEAD = 13 + (3 << (GIF[10] & 7) + 1 if GIF[10] & 128 else 0)
WEBP = saved(NOISE, "WEBP", lossless=True, exif=EXIF)


def before_frame(part: bytes, *, head: bytes = b"", tail: bytes = b"") -> Callable[[int, int], bytes]:
    def make(total: int, _: int) -> bytes:
        return GIF[:GIF_HEAD] + head + part * ((total - len(GIF)) // len(part)) + tail + GIF[GIF_HEAD:]

    return make


def gif_of(codes: bytes, side: int, *, block: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0xF7, 0, 0) + bytes(range(256)) * 3
    frame = b"," + struct.pack("<4HB", 0, 0, side, side, 0) + b"\x08"
    blocks = (codes[at : at + block] for at in range(0, len(codes), block))
    return b"".join([head, frame, *(bytes([len(part)]) + part for part in blocks), b"\0;"])


def in_bits(codes: list[int], width: int) -> bytes:
    return sum(code << n * width for n, code in enumerate(codes)).to_bytes(len(codes) * width // 8, "little")


def webp_with(part: bytes) -> Callable[[int, int], bytes]:
    def make(total: int, _: int) -> bytes:
        body = WEBP[12:] + part * ((total - len(WEBP)) // len(part))
        return b"RIFF" + struct.pack("<L", len(body) + 4) + b"WEBP" + body

    return make


def animated(count: int) -> bytes:
    frames = [Image.new("RGB", (8, 8), (n % 256, n // 256, 9)) for n in range(count)]
    return saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])


GIFS = {
    "comments": SlowImage(before_frame(b"!\xfe\1x\0"), "more than 65536 blocks"),
    "a comment of blocks of a byte": SlowImage(
        before_frame(b"\1x", head=b"!\xfe", tail=b"\0"), "more than 65536 blocks"
    ),
    "an application's blocks of a byte": SlowImage(
        before_frame(b"\1x", head=b"!\xff", tail=b"\0"), "more than 65536 blocks"
    ),
    "graphic controls": SlowImage(before_frame(b"!\xf9\4\1\0\0\0\0"), "more than 65536 blocks"),
    "rubble before the frame": SlowImage(before_frame(b"x")),
    "zeros before the frame": SlowImage(before_frame(b"\0")),
    "rubble and no frame": SlowImage(lambda total, _: GIF[:GIF_HEAD].ljust(total, b"x"), "ends before its first image"),
    "nothing but clear codes": SlowImage(
        lambda total, _: gif_of(in_bits([256] * 8, 9) * (total // 10), 64, block=255), "before the image is complete"
    ),
    "pixels in blocks of a byte": SlowImage(
        lambda _, side: gif_of(
            in_bits([256, 7, 7, 7, 7, 7, 7, 7], 9) * (min(side, 1000) ** 2 // 7 + 1), min(side, 1000), block=1
        )
    ),
}
WEBPS = {
    "unknown chunks": SlowImage(webp_with(b"abcd" + bytes(4))),
    "EXIF chunks": SlowImage(webp_with(b"EXIF" + bytes(4))),
    "3,000 frames": SlowImage(lambda total, _: animated(min(3000, total // 100))),
}


# --- TIFF, BMP --------------------------------------------------------------------------------------------------------


def of_strips(
    count: int, packed_row: bytes, compression: int, *more: tuple[int, int, int, int], counted: int = 0
) -> bytes:
    """A grey TIFF of a strip for each row of 8 pixels, all the same; ``counted`` is the length that strips claim."""
    entries = [(256, 4, 1, 8), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    at = 8 + 2 + 12 * (len(entries) + 4 + len(more)) + 4
    shared = at + 8 * count if counted else 0
    entries += [(273, 4, count, at), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, count, at + 4 * count), *more]
    size, first = len(packed_row), at + 8 * count
    offsets = np.full(count, shared, "<u4") if counted else np.arange(count, dtype="<u4") * size + first
    counts = np.full(count, counted or size, "<u4")
    pixels = packed_row.ljust(counted, b"\0") if counted else packed_row * count
    return tiff_by_hand(*sorted(entries)) + offsets.tobytes() + counts.tobytes() + pixels


def turned_bits(data: bytes) -> bytes:
    return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)), bitorder="little").tobytes()


def float_planes(rows: int) -> bytes:
    planes = np.zeros((2, rows, 2), np.float32)
    return tiff(planes, photometric="minisblack", planarconfig="separate", extrasamples=[2], rowsperstrip=1)


def of_tags(count: int) -> bytes:
    """A BigTIFF with so many tags of no meaning."""
    return (
        b"II\x2b\0\x08\0\0\0" + struct.pack("<QQ", 16, count) + struct.pack("<HHQQ", 65000, 1, 1, 0) * count + bytes(8)
    )


def deep_and_packed(side: int) -> bytes:
    values = np.zeros((side, side, 3), np.float64)
    return tiff(values, photometric="rgb", compression="zlib", rowsperstrip=64)


PACKED_ROW = zlib.compress(bytes(8))
TIFFS = {
    "strips of a row": SlowImage(lambda total, _: of_strips(total // 16 - 10, bytes(8), 1), "strips or tiles; at most"),
    "as many strips as are allowed": SlowImage(lambda *_: of_strips(16_384, bytes(8), 1)),
    "as many packed strips as are allowed": SlowImage(lambda *_: of_strips(16_384, PACKED_ROW, 8)),
    "strips of planes": SlowImage(lambda *_: float_planes(4100), "8200 strips or tiles; at most 8194"),
    "strips that are all of the file": SlowImage(
        lambda total, _: of_strips(1000, turned_bits(PACKED_ROW), 8, (266, 3, 1, 2), counted=total - 20_000),
        "at most 4 times as many",
    ),
    "tags": SlowImage(lambda total, _: of_tags(total // 20 - 10), "tags; at most 4096"),
    "deep colours that are packed": SlowImage(lambda *_: deep_and_packed(2200), "bytes once unpacked"),
    "as many deep colours as are allowed": SlowImage(lambda *_: deep_and_packed(2000)),
    "scans of the JPEG inside": SlowImage(lambda _, side: jpeg_in_tiff(side, 99), "send the whole file"),
}


def jpeg_in_tiff(side: int, scans: int) -> bytes:
    inside = of_scans(side, scans, refined=True)
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 1), (277, 3, 1, 1)]
    at = 8 + 2 + 12 * (len(entries) + 3) + 4
    entries += [(273, 4, 1, at), (278, 4, 1, side), (279, 4, 1, len(inside))]
    return tiff_by_hand(*sorted(entries)) + inside


def os2_runs(total: int) -> bytes:
    """A BMP with OS/2's header of 64 bytes, which Pillow reads, of skips that go nowhere."""
    body = b"\0\2\0\0" * (total // 4)
    offset = 14 + 64 + 1024
    head = struct.pack("<LllHHLLllLL", 64, 64, 64, 1, 8, 1, len(body), 0, 0, 256, 0).ljust(64, b"\0")
    return b"BM" + struct.pack("<LLL", offset + len(body), 0, offset) + head + bytes(1024) + body


def bmp_runs(runs: bytes, bits: int = 8, compression: int = 1) -> Callable[[int, int], bytes]:
    def make(total: int, side: int) -> bytes:
        count = (max(total, 2_300_000) - 2000) // len(runs)
        return bmp_of((side, side), bits, compression, runs * count, palette=bytes(4 << bits))

    return make


BMPS = {
    "skips that go nowhere": SlowImage(bmp_runs(b"\0\2\0\0"), "run lengths"),
    "runs of no pixel in a row": SlowImage(bmp_runs(b"\1\1"), "before the image is complete|run lengths"),
    "pairs of pixels one by one": SlowImage(bmp_runs(b"\0\xff" + bytes(128), 4, 2), "before the image is complete"),
    "runs of OS/2's kind": SlowImage(lambda total, _: os2_runs(total), "bytes of run lengths; at most 262144"),
}

SLOW = {
    f"{kind}: {what}": image
    for kind, images in {
        "JPEG": JPEGS, "PNG": PNGS, "GIF": GIFS, "WebP": WEBPS, "TIFF": TIFFS, "BMP": BMPS
    }.items()
    for what, image in images.items()
}  # fmt: skip
