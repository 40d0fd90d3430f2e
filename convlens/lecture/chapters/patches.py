"""Patches that excite a channel most, with guided backpropagation of the very neuron."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from convlens.features.image_list import find_images
from convlens.lecture.base import RESULTS, Drawn, Figure, Lecture, chapter
from convlens.lecture.outputs import read_image, read_table
from convlens.types import Bytes8
from convlens.visualization.layout import add_margin, text_image, vstack

_CHANNELS, _K = 6, 9


@chapter("patches", title="Maximally activating patches", place=5)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """A figure a layer; the plain gradient stands in, and says so, where guided backpropagation has no rule."""
    reason = lecture.refusal("guided_backprop") if lecture.classifier.spec.labels else ""
    count = len(find_images([lecture.path(lecture.pictures)]))
    for place, layer in lecture.layers(shallow=0.25, middle=0.5).items():
        yield _figure(lecture, place, layer, reason, min(_K, count))


def _figure(lecture: Lecture, place: str, layer: str, reason: str, k: int) -> Figure:
    name = f"patches-{place}"
    channels = lecture.channels(layer, lecture.size(_CHANNELS, 2))
    backprop = "saliency" if reason else "guided"

    def draw() -> Drawn:
        folder = lecture.path(f"{RESULTS}/{name}")
        rows = read_table(folder / "patches.csv")
        facts = [("Layer", layer), ("Channels", ", ".join(map(str, channels)))]
        if reason:
            facts.append(("Gradient", f"plain, since {reason}"))
        pages = [("The report: these channels with file names", f"{RESULTS}/{name}/report.html")]
        return Drawn(_stacked(folder, channels), {"layer": layer, "backprop": backprop, "patches": rows}, facts, pages)

    below = "the gradient" if reason else "guided backpropagation"
    return Figure(
        name=name,
        title=f"Patches that excite channels of {layer}",
        shows="For each channel the crops, out of all images, that excite it most, strongest first, as large as what "
        f"the neuron sees; below each, {below} of that neuron: which pixels of the crop do it. The channels are those "
        "that the first image excites most.",
        does_not_show=lecture.caution(
            "The best of a few images is not the best there is: with other images the same channel may seem to be for "
            "something else."
        ),
        commands=(
            lecture.command(
                *("patches", lecture.pictures, "--layer", layer, "--channels", ",".join(map(str, channels))),
                *("-k", k, "--backprop", backprop),
                output=name,
            ),
        ),
        draw=draw,
        photograph=True,
    )


def _stacked(folder: Path, channels: list[int]) -> Bytes8:
    parts = []
    for channel in channels:
        sheet = read_image(folder / "channels" / f"{channel:04}.jpg")
        parts += [text_image(f"channel {channel}", size=15, width=sheet.shape[1]), sheet]
    return add_margin(vstack(parts, gap=6), margin=12)
