"""``convlens export``. In a file of its own because the exporter, which defines the options, loads onnx."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from convlens.cli.console import console, spinner
from export.__main__ import main, print_steps
from export.exporter import OnStep


def export(context: typer.Context) -> None:
    """Export ONNX graphs, each compared with torch before it is written."""
    # A spinner in a pipe or a log would show its last state only.
    sys.exit(main(context.args, show_steps=_spin if console.is_terminal else print_steps))


@contextmanager
def _spin(description: str) -> Iterator[OnStep]:
    with spinner(description) as show:
        yield lambda step: show(step.stage)
