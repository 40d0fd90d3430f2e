"""The closing table of ``explain`` and ``demo``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from convlens.cli.console import out
from convlens.cli.output import Answer
from convlens.types import Attribution, Explanation, Reply


def show_table(answers: Sequence[Answer]) -> None:
    """A row a picture: its best three classes, and each explanation's target and time."""
    table = Table(show_lines=True)
    for heading in ("picture", "top 3", "explanations"):
        table.add_column(heading)
    for answer in answers:
        # Text, not str: a label or a file name is never read as markup.
        table.add_row(Text(answer.name), Text(_top(answer.reply)), Text(_explanations(answer.reply)))
    out.print(table)


def _top(reply: Reply) -> str:
    return "\n".join(f"{one.label} {one.probability:.1%}" for one in reply.predictions[:3])


def _explanations(reply: Reply) -> str:
    return "\n".join(f"{one.id}: {_about(one)}, {one.milliseconds:.0f} ms" for one in reply.explanations)


def _about(one: Explanation) -> str:
    if isinstance(one.result, Attribution):
        return f"{one.target_label} ({float(one.result.score_N[0]):.2f})"
    nearest = one.result.neighbours_NM[0][0]
    return f"nearest {nearest.id} ({nearest.distance:.2f})"
