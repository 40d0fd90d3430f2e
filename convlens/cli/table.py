"""The closing table of ``explain`` and ``demo``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from rich.table import Table
from rich.text import Text

from convlens.cli.console import out
from convlens.cli.output import Answer
from convlens.types import Attribution, Explanation


def show_table(answers: Sequence[Answer]) -> None:
    """A row a picture: its best three classes, and each explanation's target (with its score) and time."""
    table = Table()
    for heading in ("picture", "top 3", "explanation", "of"):
        table.add_column(heading, overflow="fold")
    table.add_column("ms", justify="right")
    for answer in answers:
        for cells in _lines(answer):
            # Text, not str: a label or a file name is never read as markup.
            table.add_row(*map(Text, cells))
        table.add_section()
    out.print(table)


def _lines(answer: Answer) -> Iterator[tuple[str, ...]]:
    """The table's rows for one picture: a line each for a class and an explanation, side by side."""
    top = [f"{one.label} {one.probability:.1%}" for one in answer.reply.predictions[:3]]
    explained = [(one.id, _about(one), f"{one.milliseconds:.0f}") for one in answer.reply.explanations]
    for n, (best, cells) in enumerate(zip_longest(top, explained)):
        yield answer.name if n == 0 else "", best or "", *(cells or ("", "", ""))


def _about(one: Explanation) -> str:
    if isinstance(one.result, Attribution):
        return f"{one.target_label} ({float(one.result.score_N[0]):.2f})"
    nearest = one.result.neighbours_NM[0][0]
    return f"{nearest.id} ({nearest.distance:.2f})"
