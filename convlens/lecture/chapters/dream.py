"""DeepDream: what a layer sees in an image, exaggerated."""

from __future__ import annotations

from collections.abc import Iterator

from convlens.lecture.base import Figure, Lecture, chapter
from convlens.lecture.outputs import job_drawing
from convlens.synth.trunk import dream_layers


@chapter("dream", title="DeepDream", place=12)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """A deep layer, which draws parts of things, and a shallow one, which draws strokes."""
    layers = dict.fromkeys((*dream_layers(lecture.classifier), *lecture.layers(shallow=0.25).values()))
    for n, layer in enumerate(layers):
        yield _figure(lecture, layer, "dream" if n == 0 else "dream-shallow", is_deep=n == 0)


def _figure(lecture: Lecture, layer: str, name: str, *, is_deep: bool) -> Figure:
    sizes = ("--side", lecture.size(448, 96), "--octaves", lecture.size(4, 1), "--steps", lecture.size(20, 2))
    return Figure(
        name=name,
        title=f"What {layer} sees, exaggerated",
        shows="The image before and after steps that strengthen whatever the layer's units answer to already, from "
        "coarse to fine. "
        + ("A deep layer draws eyes, fur and limbs." if is_deep else "A shallow layer draws strokes and curls."),
        does_not_show="What is drawn was in the training images, not in this one: a network trained on dogs sees dogs. "
        "How strong it looks depends on the number of steps.",
        commands=(lecture.command("dream", lecture.subjects[0], "--layers", layer, *sizes, output=name),),
        draw=job_drawing(lecture, name, "before-and-after"),
        photograph=True,
    )
