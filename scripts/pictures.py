"""The images in docs/pictures, made anew: python scripts/pictures.py [NAME ...], from the repository's root.

Jobs are kept in .convlens/pictures and resume there. ``before-and-after`` needs an older checkout: see ``--before``.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from convlens import explain, image, load
from convlens.cli.main import build
from convlens.cli.photographs import photograph, photographs
from convlens.engine.engine import Engine
from convlens.engine.rendering import heatmap_scale, overlay_scale
from convlens.models import Classifier
from convlens.protocol.params import parse_params
from convlens.protocol.reply_folder import image_file
from convlens.protocol.requests import Request
from convlens.types import Attribution, Bytes8, Explanation, Reply
from convlens.visualization import colour_bar
from convlens.visualization.colourbar import BarKind, LaidOver
from convlens.visualization.layout import add_margin, enlarge, hstack, text_image, vstack

FOLDER = Path("docs") / "pictures"
WORK = Path(".convlens") / "pictures"
PHOTOGRAPHS = ("coffee.png", "motorcycle_left.png", "chelsea.png")
METHODS = ["saliency", "guided_backprop", "occlusion", "grad_cam", "integrated_gradients"]
OCCLUSION = {"method": "occlusion", "options": {"window": 48, "score": "probability"}}
COMPARED = ["grad_cam", "integrated_gradients", "occlusion"]
TILE, BAR, GAP, LETTERS = 176, 64, 10, 15  # pixels
MOST_BYTES = 290_000
CLASSES = (
    *("koala", "espresso", "goldfish", "zebra", "balloon", "hook", "otter", "African elephant", "fiddler crab"),
    *("traffic light", "Tibetan terrier", "grey fox"),
)
# The image's name -> the command that makes it, and the figure of the job.
JOBS: dict[str, tuple[tuple[str, ...], str]] = {
    "ascent": (("ascent", *CLASSES), "sheet"),
    "channels": (
        ("ascent", "--layer", "blocks.3.1.conv_dw", "--channels", "1,7,20,33,48,60", "--steps", "256"),
        "sheet",
    ),
    "fooling": (("fool", "chelsea.png", "--target", "koala"), "figure"),
    "dream": (("dream", "chelsea.png"), "before-and-after"),
    "dream-guided": (
        ("dream", "coffee.png", "--guide", "chelsea.png", "--layers", "blocks.3.1"),
        "before-and-after",
    ),
    "inversion": (("invert", "chelsea.png"), "shallow-to-deep"),
    "texture-quilting": (
        ("texture", "brick.png", "--method", "quilt", "--size", "512x512"),
        "source-and-texture",
    ),
    "texture-gram-gravel": (("texture", "gravel.png"), "source-and-texture"),
    "texture-gram-brick": (("texture", "brick.png"), "source-and-texture"),
    "texture-efros": (
        ("texture", "brick.png", "--method", "efros", "--size", "128x128"),
        "source-and-texture",
    ),
}


def main() -> None:
    """Make the images that are named, by default all but the comparison with an older checkout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(("explained", *JOBS, "before-and-after")))
    parser.add_argument(
        "--before",
        type=Path,
        help="Results of `convlens explain` by an older checkout: coffee, motorcycle and cat, "
        f"--methods {','.join(COMPARED)}; drawn above today's.",
    )
    arguments = parser.parse_args()
    makers: dict[str, Callable[[], Bytes8]] = {"explained": explained}
    makers |= {name: partial(job_figure, name) for name in JOBS}
    if arguments.before:
        makers["before-and-after"] = lambda: before_and_after(arguments.before)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or makers:
        if name not in makers:
            parser.error(f"no image {name!r}; there are {', '.join(makers)}")
        (FOLDER / f"{name}.jpg").write_bytes(small_jpeg(makers[name]()))


def small_jpeg(figure_HWC: Bytes8) -> bytes:
    """As JPEG of the best quality that keeps it small."""
    encoded = (image.encode_jpeg(figure_HWC, quality=quality) for quality in range(92, 30, -4))
    return next(data for data in encoded if len(data) <= MOST_BYTES)


# ---- explanations


def explained() -> Bytes8:
    """A row a photograph: what the network saw, and its maps with their colour bars."""
    classifier = load(device="cpu")
    methods = [OCCLUSION if name == "occlusion" else name for name in METHODS]
    replies = replies_of(classifier, methods)
    headings = ["Input", *(explain.get(name).title for name in METHODS)]
    rows = []
    for (view, reply), is_first in zip(replies, (True, False, False), strict=True):
        tiles = [captioned(scaled(view), predicted(reply))]
        tiles += [tile_of(item) for item in reply.explanations]
        if is_first:
            tiles = [
                vstack([text_image(heading, size=LETTERS, width=tile.shape[1]), tile], gap=2)
                for heading, tile in zip(headings, tiles, strict=True)
            ]
        rows.append(hstack(tiles, gap=GAP))
    return add_margin(vstack(rows, gap=2), margin=GAP)


def replies_of(classifier: Classifier, methods: Sequence[object]) -> list[tuple[Bytes8, Reply]]:
    """For each of the photographs what the network saw, and the reply."""
    engine = Engine(classifier)
    params = parse_params({"methods": methods, "output": ["overlay", "heatmap"]})
    inputs = [image.read(photographs()[name]) for name in PHOTOGRAPHS]
    pairs = []
    for item, reply in zip(inputs, engine.run([Request(item, params) for item in inputs]), strict=True):
        assert isinstance(reply, Reply), reply
        pairs.append((image.prepare(item, classifier.spec).view_HWC, reply))
    return pairs


def predicted(reply: Reply) -> str:
    """The best class and its probability."""
    best = reply.predictions[0]
    return f"{best.label}, {best.probability:.0%}"


def tile_of(item: Explanation) -> Bytes8:
    """Guided backprop is an image of its own, every other method an overlay; with its bar."""
    assert isinstance(item.result, Attribution), item.method
    method = explain.get(item.method)
    if method.drawing == "gradient":
        drawn = heatmap_scale(item.result, method)
        return with_bar(item.heatmap_png, drawn.limit, drawn.colours)
    over = overlay_scale(item.result, method)
    return with_bar(item.overlay_png, over.limit, over.colours)


def with_bar(png: bytes, limit: float, colours: BarKind | LaidOver) -> Bytes8:
    """The drawing beside its colour bar, as wide as any other, so that columns are straight."""
    picture = scaled(decoded(png))
    return widened(hstack([picture, colour_bar(limit, kind=colours, height=len(picture))], gap=4))


def widened(tile: Bytes8) -> Bytes8:
    """With paper on the right, up to the room that a bar takes."""
    return np.pad(tile, ((0, 0), (0, TILE + BAR - tile.shape[1]), (0, 0)), constant_values=255)


def before_and_after(folder: Path) -> Bytes8:
    """For each photograph and method the older drawing above today's."""
    rows = []
    for (view, reply), name in zip(replies_of(load(device="cpu"), COMPARED), PHOTOGRAPHS, strict=True):
        above = [captioned(scaled(view), predicted(reply))]
        below = [np.full((TILE, TILE, 3), 255, np.uint8)]
        for item in reply.explanations:
            assert isinstance(item.result, Attribution), item.method
            title = explain.get(item.method).title
            earlier = (folder / Path(name).stem / image_file(item.id, "overlay")).read_bytes()
            above.append(widened(captioned(scaled(decoded(earlier)), f"{title}, before")))
            below.append(captioned(tile_of(item), f"{title}, after"))
        rows += [hstack(above, gap=GAP), hstack(below, gap=GAP)]
    return add_margin(vstack(rows, gap=4), margin=GAP)


# ---- jobs


def job_figure(name: str) -> Bytes8:
    """The figure of the job of that name, which is run where it has not ended."""
    arguments, stem = JOBS[name]
    given = [str(photograph(each)) if each.endswith(".png") else each for each in arguments]
    command = [*given, "-o", str(WORK / name)]
    build(command)(command, standalone_mode=False)
    return np.asarray(image.read(WORK / name / f"{stem}.png").convert("RGB"))


# ---- layout


def decoded(encoded: bytes) -> Bytes8:
    """(H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def scaled(picture_HWC: Bytes8) -> Bytes8:
    """A square tile; small maps by whole squares first."""
    if max(picture_HWC.shape[:2]) < TILE // 2:
        picture_HWC = enlarge(picture_HWC, TILE // max(picture_HWC.shape[:2]))
    return np.asarray(Image.fromarray(picture_HWC).resize((TILE, TILE), Image.Resampling.LANCZOS))


def captioned(picture_HWC: Bytes8, caption: str) -> Bytes8:
    """The picture above its caption."""
    return vstack([picture_HWC, text_image(caption, size=LETTERS, width=picture_HWC.shape[1])], gap=4)


if __name__ == "__main__":
    main()
