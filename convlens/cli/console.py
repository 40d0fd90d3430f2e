"""Everything that the command line prints: results on standard output, messages and progress on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

console = Console(stderr=True)
# A pipe or a log has no width of its own; 80 columns would break the tables.
out = Console(width=None if sys.stdout.isatty() else 120)

_DESCRIPTION = TextColumn("{task.description}", markup=False)


def print_result(text: str) -> None:
    """A line of the result, for people and pipes: never wrapped, and no label or file name is read as markup."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def print_message(text: str) -> None:
    """A line about what is going on."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_warning(text: str) -> None:
    """A yellow line: the work goes on without something."""
    console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_error(text: str) -> None:
    """A red line: something asked for was not done."""
    console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


def print_skipped(items: Iterable[tuple[str, str]]) -> None:
    """A warning for each skipped (image, reason)."""
    for name, reason in items:
        print_warning(f"skipped {name}: {reason}")


def print_lattice_left_out(model: str) -> None:
    """A warning that deconvnet's maps of this model are left out."""
    print_warning(
        f"deconvnet is left out: {model} has no max pooling, without which its map is the same lattice for every "
        "image; name it in --methods to have it all the same"
    )


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose first column holds names and whose other columns hold numbers."""
    table = Table()
    for n, heading in enumerate(headings):
        table.add_column(heading, justify="right" if n else "left")
    for cells in rows:
        table.add_row(*map(Text, cells))  # Text, not str: a label or a file name is never read as markup
    out.print(table)


@contextmanager
def spinner(description: str) -> Iterator[Callable[[str], None]]:
    """Show that work of unknown length is under way, and for how long; call what it yields to change the text."""
    with Progress(SpinnerColumn(), _DESCRIPTION, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(description, total=None)
        yield lambda text: bar.update(task, description=text)


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Progress]:
    """A bar over ``total`` items; advance its only task."""
    with Progress(_DESCRIPTION, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as bar:
        bar.add_task(description, total=total)
        yield bar


@contextmanager
def throughput_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` images with images per second; call the function it yields with the number done.

    The number in the first call was done by an earlier run and does not count as speed.
    """
    speed = TextColumn("{task.fields[rate]:.3g} images/s")
    columns = (_DESCRIPTION, BarColumn(), MofNCompleteColumn(), speed, TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, rate=0.0)
        first: tuple[float, int] | None = None

        def update(done: int) -> None:
            nonlocal first
            now = time.perf_counter()
            start, before = first = first or (now, done)
            bar.update(task, completed=done, rate=(done - before) / max(now - start, 1e-9))

        yield update


def job_bars() -> Progress:
    """Bars for synthesis jobs, one a task; each shows ``objective``, a field of its task."""
    objective = TextColumn("{task.fields[objective]}", markup=False)
    columns = (_DESCRIPTION, BarColumn(), MofNCompleteColumn(), objective, TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
