"""Guided backpropagation and deconvnet of the predicted class."""

from __future__ import annotations

from collections.abc import Iterator

from convlens.explain.methods.deconvnet import depends_on_image
from convlens.lecture.base import Figure, Lecture, chapter
from convlens.lecture.outputs import explanation_drawing

_LATTICE = (
    "Deconvnet is missing here: without max pooling nothing remembers which units were on, and its map is the same "
    "lattice for every image."
)


@chapter("backprop", title="Guided backpropagation", place=9)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """One figure, a row an image; with deconvnet where its map depends on the image."""
    methods = {"guided_backprop": "Guided backpropagation"}
    with_deconvnet = depends_on_image(lecture.classifier)
    if with_deconvnet:
        methods["deconvnet"] = "Deconvnet"
    yield Figure(
        name="guided-backprop",
        title="Details that speak for the class",
        shows="The gradient of the predicted class's score where only what is positive passes each ReLU: fine details, "
        "in colour, on the things that excite the network. Grey is 0." + ("" if with_deconvnet else f" {_LATTICE}"),
        does_not_show="It shows edges of what excites many neurons, and hardly changes where another class is asked "
        "for or where the top layers are made random: it says what is visible to the network, not what decides.",
        commands=(
            lecture.command("explain", *lecture.subjects, "--methods", ",".join(methods), output="guided-backprop"),
        ),
        draw=explanation_drawing(lecture, "guided-backprop", methods, overlays=len(methods) == 1, unit="∂logit/∂x"),
        photograph=True,
        method="guided_backprop",
    )
