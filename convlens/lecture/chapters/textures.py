"""Texture synthesis: by Gram matrices of features, by quilting, and pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterator

from convlens.lecture.base import RESULTS, Command, Figure, Lecture, chapter
from convlens.lecture.outputs import job_drawing

_TEXTS = {
    "gram": (
        "By Gram matrices of features",
        "Noise that was changed until correlations of features at several layers are those of the sample: the same "
        "stones or blades, in other places.",
        "Order over long distances, such as rows of bricks, is not in those correlations and gets lost. Specks of "
        "colour are left over from the noise.",
    ),
    "quilt": (
        "By quilting",
        "Blocks of the sample, each laid so that it fits its neighbours, and cut along the least visible seam.",
        "Nothing new: every pixel is one of the sample's, and a block that comes twice can be seen.",
    ),
    "efros": (
        "Pixel by pixel",
        "Each pixel is copied from the place of the sample whose surroundings are most like its own.",
        "Slow, hence small. It may get caught in one place of the sample and repeat it, or drift into a blur.",
    ),
}


@chapter("textures", title="Texture synthesis", place=14)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """A figure a method; the last two need no network."""
    side = lecture.size(256, 64)
    scales = lecture.size(2, 1)
    options = {
        "gram": (
            *("--size", f"{side}x{side}", "--steps", lecture.size(100, 2), "--set", f"source_side={side}"),
            *("--set", f"scales={scales}"),
        ),
        "quilt": ("--size", lecture.size("384x384", "64x64"), "--set", f"block={lecture.size(48, 16)}"),
        "efros": ("--size", lecture.size("128x128", "32x32"), "--set", f"source_side={lecture.size(96, 24)}"),
    }
    for method, (title, shows, does_not_show) in _TEXTS.items():
        command = ("texture", lecture.texture, "--method", method, *options[method])
        name = f"texture-{method}"
        yield Figure(
            name=name,
            title=title,
            shows=f"Left the sample, right a new image. {shows}",
            does_not_show=does_not_show,
            # A model is an option of gram alone.
            commands=(
                lecture.command(*command, output=name)
                if method == "gram"
                else Command.of(*command, "-o", f"{RESULTS}/{name}"),
            ),
            draw=job_drawing(lecture, name, "source-and-texture"),
            photograph=True,
        )
