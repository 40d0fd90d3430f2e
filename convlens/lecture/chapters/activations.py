"""Activations: what single channels of a shallow and of a deep layer answer to one image."""

from __future__ import annotations

from collections.abc import Iterator

from convlens.lecture.base import RESULTS, Drawn, Figure, Lecture, chapter
from convlens.lecture.outputs import captioned, read_image, read_table
from convlens.synth.images import resized
from convlens.visualization.layout import add_margin, hstack, vstack

_SHOWN = 24
_SIDE = 448  # pixels, as the channel beside it


@chapter("activations", title="Activations", place=4)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """A figure a layer."""
    for place, layer in lecture.layers(shallow=0.25, deep=0.75).items():
        yield _figure(lecture, place, layer)


def _figure(lecture: Lecture, place: str, layer: str) -> Figure:
    folder = f"{RESULTS}/activations-{place}"

    def draw() -> Drawn:
        path = lecture.path(folder)
        ranking = read_table(path / "ranking.csv")[:_SHOWN]
        channel = int(ranking[0]["channel"])
        alone, over = (read_image(path / f"{stem}-{channel:04}.png") for stem in ("channel", "overlay"))
        over = resized(over, (_SIDE, round(over.shape[1] * _SIDE / len(over))))
        over = add_margin(captioned(over, f"channel {channel} over the image"), margin=12)
        figure = vstack([read_image(path / "strongest.png"), hstack([alone, over], gap=16)], gap=16)
        numbers = {"layer": layer, "ranking": ranking}
        return Drawn(figure, numbers, [("Layer", layer), ("Strongest channel", str(channel))])

    return Figure(
        name=f"activations-{place}",
        title=f"Activations of a {place} layer",
        shows="The channels that this image excites most, each with its largest value, to one scale; below, the "
        "strongest alone and over the image. "
        + (
            "Shallow channels are detailed: edges, colours, textures wherever they are."
            if place == "shallow"
            else "Deep channels are coarse, and each answers in a few places: to a part of a thing."
        ),
        does_not_show="A bright place says that the channel answers there, not why, and not that the class depends on "
        "it. One image does not tell what a channel is for: the patches below compare many.",
        commands=(
            lecture.command("activations", lecture.subjects[0], "--layer", layer, output=f"activations-{place}"),
        ),
        draw=draw,
    )
