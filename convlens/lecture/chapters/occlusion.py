"""Occlusion: how far the score falls where a window hides the image."""

from __future__ import annotations

from collections.abc import Iterator

from convlens.lecture.base import Figure, Lecture, chapter
from convlens.lecture.outputs import explanation_drawing


@chapter("occlusion", title="Occlusion", place=6)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """One figure, a row an image."""
    coarse = ("--set", "occlusion.stride=32") if lecture.quick else ()
    yield Figure(
        name="occlusion",
        title="Hiding a part at a time",
        shows="A grey window moves over the image; the map says how far the predicted class's score falls where it "
        "hides the image (red), or rises (blue). Red places are those that the prediction needs.",
        does_not_show="A grey square is itself something that the network never saw. Where two parts each suffice, "
        "hiding one of them changes nothing, and the map is pale on both. Nothing finer than the window can be seen.",
        commands=(
            lecture.command(
                *("explain", *lecture.subjects, "--methods", "occlusion", *coarse, "--no-accelerate"),
                output="occlusion",
            ),
        ),
        draw=explanation_drawing(lecture, "occlusion", {"occlusion": "Occlusion"}, unit="logit"),
        photograph=True,
    )
