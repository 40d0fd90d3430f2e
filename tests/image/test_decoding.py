from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import skimage.data
import tifffile
from image_files import pixels, png, saved, tiff, tiff_by_hand
from PIL import Image

from convlens.errors import ImageError, ImageTooLargeError
from convlens.image import Limits, decode, read
from convlens.image.tiff import read_tiff


@pytest.fixture(scope="module")
def coffee() -> np.ndarray:
    return skimage.data.coffee()[100:164, 200:280]


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        *[("TIFF", {"compression": c}) for c in ("tiff_lzw", "tiff_deflate", "packbits", "zstd")],
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_lossless_formats_give_back_every_pixel(coffee, form, options):
    np.testing.assert_array_equal(pixels(saved(coffee, form, **options)), coffee)


@pytest.mark.parametrize(("form", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {"quality": 95}),
                                               ("TIFF", {"compression": "jpeg"})])  # fmt: skip
def test_lossy_formats_come_close(coffee, form, options):
    assert np.abs(pixels(saved(coffee, form, **options)) - coffee.astype(float)).mean() < 6  # quantisation alone


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bodies_may_be_any_kind_of_bytes(coffee, kind):
    np.testing.assert_array_equal(pixels(kind(saved(coffee, "PNG"))), coffee)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF lzw"])
def test_every_exif_orientation_ends_upright(form, turn):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16], upright[16:, 32:] = (255, 0, 0), (0, 0, 255)
    stored = {  # what a camera that calls it `turn` has written (EXIF 2.32, table 6)
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1)}[turn]  # fmt: skip
    exif = Image.Exif()
    exif[274] = turn
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True},
               "TIFF lzw": {"compression": "tiff_lzw"}}.get(form, {})  # fmt: skip
    data = saved(np.ascontiguousarray(stored), form.split()[0], exif=exif, **options)
    np.testing.assert_allclose(pixels(data).astype(float), upright, atol=12)  # JPEG of flat blocks


@pytest.mark.parametrize("turn", [0, 9, 77])
def test_an_impossible_orientation_is_upright(coffee, turn):
    exif = Image.Exif()
    exif[274] = turn
    np.testing.assert_array_equal(pixels(saved(coffee, "PNG", exif=exif)), coffee)


GREY_TIFF = [(256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 200), (279, 4, 1, 2)]


@pytest.mark.parametrize(
    "damage",
    [
        (305, 2, 50, 10**6),
        (0x8769, 4, 1, 10**6),
        (700, 1, 2**31, 0),
        (34675, 7, 10**6, 8),
        (296, 3, 2, 0),
        (65000, 99, 1, 0),
    ],
)
def test_damage_in_a_tiffs_metadata_neither_stops_nor_warns(damage):
    data = tiff_by_hand(*sorted([*GREY_TIFF, damage])).ljust(200, b"\0") + bytes([7, 9])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(data)[0, :, 0].tolist() == [7, 9]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ([(320, 3, 60, 150)], "tag 320 points past its 202 bytes"),
        ([(320, 3, 60, 0), (338, 3, 60, 0)], "tag 338 points past"),  # each fits, together they cannot
        ([(284, 3, 2, 0)], "tag 284 has 2 values instead of 1"),
    ],
)
def test_damage_in_what_describes_a_tiffs_pixels_is_refused_without_a_warning(damage, reason):
    data = tiff_by_hand(*sorted([*GREY_TIFF, *damage])).ljust(200, b"\0") + bytes([7, 9])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=reason):
            decode(data)


def test_damaged_exif_neither_stops_nor_warns(coffee):
    data = saved(coffee, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    np.testing.assert_array_equal(pixels(data), coffee)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken(form):
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (pixels(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("big", [True, False])
def test_of_a_tiff_pillow_sees_the_first_page_and_its_pixels_alone(big):
    pages = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:], big_tiff=big, description="secret")
    with tifffile.TiffFile(io.BytesIO(read_tiff(data).alone(data))) as seen:
        assert len(seen.pages) == 1
        assert 270 not in seen.pages[0].tags
        assert (seen.asarray() == (255, 0, 0)).all()


def test_metadata_is_not_passed_on(coffee):
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    assert decode(saved(coffee, "JPEG", exif=exif, comment=b"secret", icc_profile=b"profile")).info == {}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_half_a_file_is_an_error_that_says_so(coffee, form):
    data = saved(coffee, form)
    with pytest.raises(ImageError, match="send the whole file") as caught:
        decode(data[: len(data) // 2])
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("data", "thing"),
    [
        (b"", "empty body"),
        (b"\xef\xbb\xbf \n<!DOCTYPE html><title>404</title>", "HTML"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b'{"data": 1}', "JSON"),
        (b"data:image/png;base64,iVBORw0KGgo", "data: URL"),
        (b"/9j/4AAQSkZJRg", "base64"),
        (b"https://example.org/cat.jpg", "web address"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypmp42", "video"),
        (b"PK\x03\x04....", "ZIP"),
        (b"hello", "unknown kind"),
    ],
)
def test_what_is_no_image_is_named(data, thing):
    with pytest.raises(ImageError, match=thing) as caught:
        decode(data)
    assert "JPEG, PNG, WebP, GIF, BMP or TIFF" in str(caught.value)


def test_formats_beyond_the_six_are_not_opened(coffee):
    for form in ("ICO", "PPM", "TGA", "SGI", "PCX", "DDS", "JPEG2000"):
        with pytest.raises(ImageError, match="is not an image that can be read"):
            decode(saved(coffee, form))


def test_a_single_pixel_and_a_ribbon_decode():
    assert pixels(saved(np.full((1, 1, 3), 7, np.uint8), "PNG")).tolist() == [[[7, 7, 7]]]
    assert decode(saved(np.zeros((2, 20000, 3), np.uint8), "PNG")).size == (20000, 2)


def test_too_many_bytes_are_refused_with_both_numbers(coffee):
    data = saved(coffee, "PNG")
    with pytest.raises(ImageTooLargeError, match=f"{len(data)} bytes; at most 100 ") as caught:
        decode(data, limits=Limits(bytes=100))
    assert caught.value.status == 413


def webp_of(width: int, height: int) -> bytes:
    body = b"VP8X" + struct.pack("<LL", 10, 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<L", len(body) + 4) + b"WEBP" + body


BOMBS = {
    "PNG": png((20000, 20000), 8, 2, b""),
    "PNG between Pillow's limits": png((10000, 10000), 8, 2, b""),
    "GIF screen": b"GIF89a" + struct.pack("<HHBBB", 20000, 20000, 0, 0, 0) + b"," + struct.pack("<4HB", 0, 0, 1, 1, 0),
    "GIF frame": b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    + b"!\xfe\x01a\0," + struct.pack("<4HB", 9, 9, 9990, 9990, 0),
    "BMP": b"BM" + struct.pack("<LLLLllHHLLllLL", 0, 0, 54, 40, 20000, 20000, 1, 24, 0, 0, 0, 0, 0, 0),
    "WebP": webp_of(10000, 10000),
    "TIFF": tiff_by_hand((256, 4, 1, 20000), (257, 4, 1, 20000), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)),
    "JPEG": b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 10000, 10000, 1) + b"\1\x11\0"
    + b"\xff\xda\0\x08\1\1\0\0\x3f\0",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_too_many_pixels_are_refused_by_the_header_alone_and_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLargeError, match="pixels; at most 50000000 are allowed"):
            decode(BOMBS[name])


def test_a_giant_tile_in_a_small_tiff_is_refused():
    data = bytearray(tiff(np.zeros((16, 16), np.uint8), tile=(16, 16)))
    at = data.index(struct.pack("<H", 322))
    data[at : at + 12] = struct.pack("<HHLL", 322, 4, 1, 2**28)
    with pytest.raises(ImageTooLargeError, match="268435456 x 16"):
        decode(bytes(data))


def test_pillows_own_limit_is_left_as_it_was(coffee):
    before = Image.MAX_IMAGE_PIXELS
    decode(saved(coffee, "PNG"))
    with pytest.raises(ImageError):
        decode(BOMBS["PNG"])
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_pixel_limit_counts_exactly(coffee):
    data = saved(coffee, "PNG")
    assert decode(data, limits=Limits(pixels=64 * 80)).size == (80, 64)
    with pytest.raises(ImageTooLargeError, match="80 x 64 = 5120 pixels; at most 5119"):
        decode(data, limits=Limits(pixels=64 * 80 - 1))


@pytest.mark.parametrize("wrong", [{"bytes": 0}, {"pixels": 0}, {"pixels": 10**9}])
def test_limits_that_cannot_be_kept_are_refused(wrong):
    with pytest.raises(ValueError, match="must be at least 1"):
        Limits(**wrong)


def test_threads_decode_what_one_thread_decodes(coffee):
    bodies = [saved(coffee, form) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")] + [b"<html>"]
    wanted = [None if body == b"<html>" else pixels(body) for body in bodies]
    wrong: list[int] = []

    def work(first: int) -> None:
        for n in range(first, first + 40):
            body, expected = bodies[n % len(bodies)], wanted[n % len(bodies)]
            try:
                same = np.array_equal(pixels(body), expected)
            except ImageError:
                same = expected is None
            if not same:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_read_names_the_path_in_every_error(tmp_path, coffee):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(saved(coffee, "PNG"))
    bad.write_bytes(b"<html>")
    np.testing.assert_array_equal(np.asarray(read(good)), coffee)
    for path in (bad, tmp_path / "missing.png", tmp_path):
        with pytest.raises(ImageError, match=str(path)):
            read(path)
    size = good.stat().st_size
    with pytest.raises(ImageTooLargeError, match=rf"{good}.*{size} bytes; at most 10 "):
        read(good, limits=Limits(bytes=10))
    with pytest.raises(ImageTooLargeError, match=str(good)):
        read(good, limits=Limits(pixels=10))


def test_image_and_colour_load_no_torch():
    code = "import sys, convlens.image, convlens.visualization; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
