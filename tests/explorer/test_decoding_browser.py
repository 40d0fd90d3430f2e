"""What a browser decodes of a file for the explorer, held against the library's decoder."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_probe import BROWSER, browse, serve
from node_bridge import PAGE
from PIL import Image

from convlens.image import decode

pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH"), pytest.mark.slow]
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (23, 31, 4), dtype=np.uint8)
# Smooth, as photographs are: of noise JPEG's own error would be as large as a wrong decoder's.
SLOPES = np.indices((40, 56)).sum(0) * 2 % 256


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def smooth() -> Image.Image:
    return Image.fromarray(np.stack([SLOPES, SLOPES[::-1], 255 - SLOPES], axis=-1).astype(np.uint8))


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(smooth(), "JPEG", quality=95, subsampling=0, exif=exif)


def palette() -> Image.Image:
    image = Image.fromarray(COLOURS[..., 0] % 4, "P")
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0, 90, 240, 10])
    return image


PICTURES: dict[str, bytes] = {
    "colour.png": saved(Image.fromarray(COLOURS[..., :3]), "PNG"),
    "transparent.png": saved(Image.fromarray(COLOURS), "PNG"),
    "grey.png": saved(Image.fromarray(COLOURS[..., 0]), "PNG"),
    "grey and alpha.png": saved(Image.fromarray(COLOURS[..., :2], "LA"), "PNG"),
    "palette.png": saved(palette(), "PNG", transparency=1),
    "profile.png": saved(Image.fromarray(COLOURS[..., :3]), "PNG", gamma=1.0),
    "transparent.webp": saved(Image.fromarray(COLOURS), "WEBP", lossless=True, exact=True),
    "screen.gif": saved(palette(), "GIF", transparency=2),
    "colour.bmp": saved(Image.fromarray(COLOURS[..., :3]), "BMP"),
    "whole.jpg": saved(smooth(), "JPEG", quality=95, subsampling=0),
    "half.jpg": saved(smooth(), "JPEG", quality=80, subsampling=2),
    "grey.jpg": saved(smooth().convert("L"), "JPEG", quality=95),
    **{f"turned {n}.jpg": turned(n) for n in (3, 6, 8, 5)},
}
# Levels: the two may upsample a JPEG's colours by other rules.
WITHIN = {name: 2 if name.endswith(".jpg") else 0 for name in PICTURES}

VISIT = """await (async () => {
  const { decode } = await import("/preprocess.js");
  const seen = {};
  for (const name of NAMES) {
    const { width, height, data } = await decode(await (await fetch(`/${encodeURIComponent(name)}`)).blob());
    seen[name] = [width, height, btoa(String.fromCharCode(...data))];
  }
  seen.error = await decode(new File(["no picture"], "notes.txt")).catch((error) => error.message);
  return seen;
})()"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("decoding")
    shutil.copy(PAGE / "preprocess.js", folder)
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)
    Path(folder / "page.html").write_text('<!DOCTYPE html><meta charset="utf-8"><title>Page</title>', encoding="utf-8")
    with serve(folder, "page.html", more=VISIT.replace("NAMES", json.dumps(list(PICTURES)))) as (address, _):
        frames, _ = browse(address, folder / "profile")
    return frames[0]["more"]


@pytest.mark.parametrize("name", PICTURES)
def test_a_browser_decodes_the_librarys_pixels(seen, name):
    width, height, data = seen[name]
    found = np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)
    expected = np.asarray(decode(PICTURES[name]))
    assert found.shape[:2] == expected.shape[:2]
    assert (found[..., 3] == 255).all()
    assert np.abs(found[..., :3].astype(int) - expected).max() <= WITHIN[name]


def test_what_is_no_picture_is_refused_by_its_name(seen):
    assert seen["error"] == "notes.txt: no picture that this browser reads; use a JPEG, PNG, WebP, GIF or BMP"
