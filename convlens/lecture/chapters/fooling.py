"""Fooling images: the smallest change that makes the network see another class, and one that makes it sure."""

from __future__ import annotations

from collections.abc import Iterator

from convlens.lecture.base import Figure, Lecture, chapter
from convlens.lecture.outputs import job_drawing

_NOT_SHOWN = (
    "The change is made for this network and this image; another network need not be fooled. It does not follow that "
    "the network sees nothing: a change of this kind is rare among all small changes."
)


@chapter("fooling", title="Fooling images", place=11)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """The smallest change, and a confident one."""
    lecture.require_classes()
    subject = lecture.subjects[0]
    target = lecture.fooling_target(subject)
    fool = ("fool", subject, "--target", target, "--steps", lecture.size(150, 40))
    yield Figure(
        name="fooling",
        title=f"The smallest change to {target}",
        shows="The image, the image that the network takes for another class, the difference, and the difference made "
        "visible. To us both images are the same.",
        does_not_show=_NOT_SHOWN,
        commands=(lecture.command(*fool, output="fooling"),),
        draw=job_drawing(lecture, "fooling", "figure"),
        photograph=True,
    )
    margin = lecture.confident_margin
    yield Figure(
        name="fooling-confident",
        title=f"A confident {target}",
        shows=f"The same where the new class must lead by {margin:g} logits, by which its probability is .9 or more: a "
        "change hardly larger makes the network sure.",
        does_not_show=_NOT_SHOWN,
        commands=(lecture.command(*fool, "--set", f"margin={margin:g}", output="fooling-confident"),),
        draw=job_drawing(lecture, "fooling-confident", "figure"),
        photograph=True,
    )
