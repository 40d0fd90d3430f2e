"""Feature inversion: how much of the image each layer still knows."""

from __future__ import annotations

from collections.abc import Iterator

from convlens.lecture.base import Figure, Lecture, chapter
from convlens.lecture.outputs import job_drawing


@chapter("inversion", title="Feature inversion", place=13)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """One figure: the image, then its inversions from shallow to deep layers."""
    others = [part for subject in lecture.subjects[1:] for part in ("--others", subject)]
    command = lecture.command(
        *("invert", lecture.subjects[0], *others, "--steps", lecture.size(100, 3)), output="inversion"
    )
    yield Figure(
        name="inversion",
        title="Images with the features of the first one",
        shows="Each image was made to have the same features at one layer as the first image has. Shallow layers keep "
        "nearly everything; deep ones keep kinds of parts and roughly where they are, and lose texture and colour. "
        "Faint images are drawn with more contrast, as their captions say.",
        does_not_show="What is missing may be lost in the layer, or only be hard to find from it; what looks natural "
        "may come from the prior, which prefers smooth images, more so for deep layers.",
        commands=(command,),
        draw=job_drawing(lecture, "inversion", "shallow-to-deep"),
        photograph=True,
    )
