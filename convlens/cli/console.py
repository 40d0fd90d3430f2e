"""What the commands say and how they show progress: on standard error. Results go to standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
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


@contextmanager
def rated(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` pictures with how many of them a second; call what it gives with how many are done.

    What the first call reports was done before: it does not count as speed.
    """
    words = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    speed = TextColumn("{task.fields[rate]:.3g} pictures/s")
    with Progress(*words, speed, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=total, rate=0.0)
        began: list[tuple[float, int]] = []

        def show(done: int) -> None:
            now = time.perf_counter()
            began[:] = began or [(now, done)]
            ((start, before),) = began
            bar.update(task, completed=done, rate=(done - before) / max(now - start, 1e-9))

        yield show
