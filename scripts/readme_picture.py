"""The README's picture: three photographs, each explained five ways, made from what the demo uses."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from convlens import image, load, visualization
from convlens.cli.demo import demo_gallery, photographs
from convlens.engine.engine import Engine
from convlens.gallery import Gallery
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.types import Bytes8, Explanation, Neighbourhood, Reply

PICTURES = ("coffee.png", "astronaut.png", "chelsea.png")
METHODS = [
    "saliency",
    "guided_backprop",
    {"method": "occlusion", "options": {"window": 48, "score": "probability"}},
    "grad_cam",
    "neighbours",
]
SIDE = 160
TARGET = Path("docs") / "pictures" / "explained.jpg"


def main() -> None:
    """Write the picture; run from the repository's root after ``make demo``."""
    classifier = load(device="cpu")
    engine = Engine(classifier, gallery=Gallery.open(demo_gallery(classifier)))
    params = parse_params({"methods": METHODS, "output": ["overlay", "heatmap"]})
    opened = [image.read(photographs()[name]) for name in PICTURES]
    replies = engine.run([Request(picture, params) for picture in opened])
    tiles: list[Bytes8] = []
    for picture, reply in zip(opened, replies, strict=True):
        assert isinstance(reply, Reply), reply
        views = [image.prepare(picture, classifier.spec).view_HWC, *map(_drawn, reply.explanations)]
        tiles += [np.asarray(Image.fromarray(view).resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for view in views]
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(image.encode_jpeg(visualization.grid(tiles, columns=1 + len(METHODS), gap=4), quality=90))


def _drawn(one: Explanation) -> Bytes8:
    """Guided backprop is a picture of its own, a neighbour its thumbnail, every other method an overlay."""
    if isinstance(one.result, Neighbourhood):
        data = one.result.neighbours_NM[0][0].thumbnail
    else:
        data = one.heatmap_png if one.method == "guided_backprop" else one.overlay_png
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


if __name__ == "__main__":
    main()
