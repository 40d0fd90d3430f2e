"""What the commands say and how they show progress: on standard error. Results go to standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

console = Console(stderr=True)
# A pipe or a log has no width of its own; 80 columns would break the tables.
out = Console(width=None if sys.stdout.isatty() else 120)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Show that something is under way, and for how long."""
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), console=console
    ) as bar:
        bar.add_task(what, total=None)
        yield


@contextmanager
def counted(what: str, total: int) -> Iterator[Progress]:
    """A bar over ``total`` things; ``advance`` its only task."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        bar.add_task(what, total=total)
        yield bar
