"""Saliency: the gradient of the class score by the pixels."""

from __future__ import annotations

from collections.abc import Iterator

from convlens.lecture.base import Figure, Lecture, chapter
from convlens.lecture.outputs import explanation_drawing


@chapter("saliency", title="Saliency", place=7)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """One figure, a row an image."""
    yield Figure(
        name="saliency",
        title="The gradient of the class score",
        shows="For each pixel the largest of the three absolute values of ∂ score / ∂ pixel: where a small change "
        "would change the score of the predicted class most.",
        does_not_show="Neither for nor against: a bright pixel may raise or lower the score. The map is of the score "
        "as it is at this image, so noisy, and says nothing about large changes such as hiding a part.",
        commands=(lecture.command("explain", *lecture.subjects, "--methods", "saliency", output="saliency"),),
        draw=explanation_drawing(lecture, "saliency", {"saliency": "Saliency"}, unit="∂logit/∂x"),
        photograph=True,
        method="saliency",
    )
