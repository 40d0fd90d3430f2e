"""Nearest neighbours: in the space of the features, and in that of the pixels."""

from __future__ import annotations

from collections.abc import Iterator

from convlens.lecture.base import RESULTS, Drawn, Figure, Lecture, chapter
from convlens.lecture.outputs import read_image, read_table


@chapter("neighbours", title="Nearest neighbours", place=2)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """One figure, a pair of rows an image."""
    output, table = f"{RESULTS}/neighbours.png", f"{RESULTS}/neighbours.csv"
    compare = lecture.command(
        "neighbours", *lecture.subjects, "--gallery", lecture.gallery.output, "--table", table, output="neighbours.png"
    )

    def draw() -> Drawn:
        rows = read_table(lecture.path(table))
        return Drawn(read_image(lecture.path(output)), {"neighbours": rows}, [_agreement(rows)])

    yield Figure(
        name="neighbours",
        title="Neighbours in feature space and in pixel space",
        shows="For each image the five nearest others: above by the network's last features, below by the pixels "
        "themselves. Neighbours by features show the same kind of thing, though place, size and light differ; "
        "neighbours by pixels share colours and layout.",
        does_not_show=lecture.caution(
            "Near means near among these images only: in a small collection the nearest may not be alike at all."
        ),
        commands=(lecture.gallery, compare),
        draw=draw,
        photograph=True,
    )


def _agreement(rows: list[dict[str, str]]) -> tuple[str, str]:
    """How many neighbours have the label of the folder that their query lies in."""
    shares = []
    for space in ("features", "pixels"):
        own = [row for row in rows if row["space"] == space]
        agreeing = sum(row["label"] == _folder(row["query"]) for row in own)
        shares.append(f"{agreeing} of {len(own)} by {space}")
    return "Neighbours from the query's own folder", ", ".join(shares)


def _folder(query: str) -> str:
    parts = query.split("/")
    return parts[-2] if len(parts) > 1 else ""
