"""The README's image: photographs of the demo, each explained five ways, under the methods' names."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convlens import explain, image, load
from convlens.cli.demo import demo_gallery, photographs
from convlens.engine.engine import Engine
from convlens.gallery import Gallery
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.types import Explanation, Neighbourhood, Reply

PHOTOGRAPHS = ("coffee.png", "motorcycle_left.png", "chelsea.png")
METHODS = [
    "saliency",
    "guided_backprop",
    {"method": "occlusion", "options": {"window": 48, "score": "probability"}},
    "grad_cam",
    "neighbours",
]
TITLES = ["Input", *(explain.get(name).title for name in ("saliency", "guided_backprop", "occlusion", "grad_cam"))]
TARGET = Path("docs") / "pictures" / "explained.jpg"
TILE, GAP = 176, 6  # pixels
HEADING, CAPTION = 34, 30  # heights of the lines of text
TEXT = (32, 36, 42)


def main() -> None:
    """Write the image; run from the repository's root after ``make demo``, which builds the gallery."""
    classifier = load(device="cpu")
    engine = Engine(classifier, gallery=Gallery.open(demo_gallery(classifier)))
    params = parse_params({"methods": METHODS, "output": ["overlay", "heatmap"]})
    inputs = [image.read(photographs()[name]) for name in PHOTOGRAPHS]
    replies = engine.run([Request(item, params) for item in inputs])
    titles = [*TITLES, "Nearest neighbour"]
    width = len(titles) * (TILE + GAP) - GAP
    canvas = Image.new("RGB", (width, HEADING + len(inputs) * (TILE + CAPTION)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        _text(draw, title, column * (TILE + GAP) + TILE // 2, HEADING // 2, anchor="mm")
    for row, (item, reply) in enumerate(zip(inputs, replies, strict=True)):
        assert isinstance(reply, Reply), reply
        top = HEADING + row * (TILE + CAPTION)
        view = Image.fromarray(image.prepare(item, classifier.spec).view_HWC)
        for column, tile in enumerate([view, *map(_tile, reply.explanations)]):
            canvas.paste(tile.resize((TILE, TILE), Image.Resampling.LANCZOS), (column * (TILE + GAP), top))
        best = reply.predictions[0]
        _text(draw, f"Predicted: {best.label} ({best.probability:.0%})", 2, top + TILE + CAPTION // 2 - 4, anchor="lm")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(image.encode_jpeg(np.asarray(canvas), quality=90))


def _text(draw: ImageDraw.ImageDraw, text: str, x: int, y: int, *, anchor: str) -> None:
    draw.text((x, y), text, fill=TEXT, font=ImageFont.load_default(size=17), anchor=anchor)


def _tile(explanation: Explanation) -> Image.Image:
    """Guided backprop is an image of its own, a neighbour its thumbnail, every other method an overlay."""
    if isinstance(explanation.result, Neighbourhood):
        data = explanation.result.neighbours_NM[0][0].thumbnail
    else:
        data = explanation.heatmap_png if explanation.method == "guided_backprop" else explanation.overlay_png
    return Image.open(io.BytesIO(data)).convert("RGB")


if __name__ == "__main__":
    main()
